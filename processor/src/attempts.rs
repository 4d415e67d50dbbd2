//! Which jobs were on the device when the process died: one that kills it is found, run alone, and given up.
//!
//! Before a core runs a micro-batch it writes down whose jobs are in it, and strikes that out when it has. What a start finds
//! written down was under way when the process before it died, and is suspect: each such job runs alone, nothing beside it. Dies the process then, it was
//! that job; after [`DEATHS_MAX`] of those the job fails without another attempt. So a job that kills the process costs
//! one death more than that at each processor that comes to run it.
//!
//! What is written outlives the process, not the machine: it is not forced to disk, since no job takes the machine with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use schemas::{Origin, TopicId};
use serde::{Deserialize, Serialize};

use crate::prepare::MicroBatch;

/// So often may the process die with a job alone on the device, until the job is given up.
pub const DEATHS_MAX: u32 = 2;
/// The most suspects that are remembered beside those of the last death. Those of a partition that went to another processor
/// are never cleared here.
const SUSPECTS_MAX: usize = 10_000;
/// Suspects are written anew when one in so many has been cleared since: with each one, many would cost a file of all of them
/// each. After a death those that were cleared and are still written run alone once more.
const CLEARED_ONE_IN: usize = 16;
const SUSPECTS_FILE: &str = "suspects.json";

/// A job by its origin.
pub(crate) type JobKey = (TopicId, i32, i64);

pub(crate) fn key(origin: &Origin) -> JobKey {
    (origin.topic_id, origin.partition, origin.offset)
}

/// What a core runs.
#[derive(Debug, Serialize, Deserialize)]
struct Attempt {
    /// Whether nothing else was on the device.
    alone: bool,
    jobs: Vec<JobKey>,
}

/// Jobs that were on the device when the process died, and how often alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(JobKey, u32)>", into = "Vec<(JobKey, u32)>")]
pub(crate) struct Suspects(BTreeMap<JobKey, u32>);

/// What past deaths say of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing.
    Clear,
    /// It may have killed the process: it is to run alone.
    Suspect,
    /// It has killed the process too often: it is not to run.
    GivenUp,
}

impl From<Vec<(JobKey, u32)>> for Suspects {
    fn from(suspects: Vec<(JobKey, u32)>) -> Self {
        Self(suspects.into_iter().collect())
    }
}

impl From<Suspects> for Vec<(JobKey, u32)> {
    fn from(suspects: Suspects) -> Self {
        suspects.0.into_iter().collect()
    }
}

impl Suspects {
    pub(crate) fn standing(&self, origin: &Origin) -> Standing {
        match self.0.get(&key(origin)) {
            None => Standing::Clear,
            Some(&deaths) if deaths < DEATHS_MAX => Standing::Suspect,
            Some(_) => Standing::GivenUp,
        }
    }

    /// What is known after the process died with `under_way` on the device.
    fn after_death(mut self, under_way: Vec<Attempt>) -> Self {
        let mut of_this_death = BTreeSet::new();
        for Attempt { alone, jobs } in under_way {
            for job in jobs {
                *self.0.entry(job).or_default() += u32::from(alone);
                of_this_death.insert(job);
            }
        }
        if self.0.len() > SUSPECTS_MAX {
            // The one that kills is among the last death's, or has killed alone.
            self.0
                .retain(|job, deaths| *deaths > 0 || of_this_death.contains(job));
        }
        self
    }
}

/// The record of what is on the device, one file a core, and what earlier records said.
pub struct Attempts {
    /// None: nothing is recorded.
    folder: Option<PathBuf>,
    suspects: Mutex<Arc<Suspects>>,
    /// How many suspects are written down and cleared since.
    cleared: AtomicUsize,
    /// Whether it was said that the folder cannot be written.
    complained: AtomicBool,
}

impl Attempts {
    /// Records nothing: a job that kills the process is tried again at every start.
    pub fn unrecorded() -> Self {
        Self {
            folder: None,
            suspects: Mutex::default(),
            cleared: AtomicUsize::new(0),
            complained: AtomicBool::new(false),
        }
    }

    /// Takes in what an earlier process left in `folder`, and records there from now on. No other processor may use it.
    ///
    /// # Errors
    /// Where the folder cannot be made, read or written.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let suspects = read::<Suspects>(&folder.join(SUSPECTS_FILE))?.unwrap_or_default();
        let files = core_files(folder)?;
        let mut under_way = Vec::new();
        for file in &files {
            under_way.extend(read::<Attempt>(file)?);
        }
        let suspects = suspects.after_death(under_way);
        let attempts = Self {
            folder: Some(folder.to_owned()),
            suspects: Mutex::new(Arc::new(suspects)),
            cleared: AtomicUsize::new(0),
            complained: AtomicBool::new(false),
        };
        attempts.keep_suspects(folder)?;
        // Only now: what they say is kept.
        for file in files {
            fs::remove_file(file)?;
        }
        let suspects = attempts.suspects();
        if !suspects.0.is_empty() {
            let deaths = suspects.0.values().max();
            tracing::warn!(
                jobs = suspects.0.len(),
                deaths,
                "the process before this one died with jobs on the device: they run alone"
            );
        }
        Ok(attempts)
    }

    pub(crate) fn suspects(&self) -> Arc<Suspects> {
        Arc::clone(&self.suspects.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes down that `core` is about to run `batch`.
    pub(crate) fn begin(&self, core: usize, batch: &MicroBatch) {
        self.record(|folder| {
            let attempt = Attempt {
                alone: batch.alone,
                jobs: batch.jobs.clone(),
            };
            overwrite(&core_file(folder, core), &attempt)
        });
    }

    /// `core` has run `batch`: the process lives, whatever came of it. Jobs that ran alone are cleared; of those that shared a
    /// micro-batch nothing is known to be.
    pub(crate) fn end(&self, core: usize, batch: &MicroBatch) {
        self.record(|folder| strike_out(&core_file(folder, core)));
        if !batch.alone {
            return;
        }
        let left = {
            let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
            let suspects = Arc::make_mut(&mut suspects);
            for job in &batch.jobs {
                suspects.0.remove(job);
            }
            suspects.0.len()
        };
        let cleared = self.cleared.fetch_add(batch.jobs.len(), Ordering::Relaxed) + batch.jobs.len();
        if cleared * CLEARED_ONE_IN >= left {
            self.record(|folder| self.keep_suspects(folder));
        }
    }

    /// Nothing is on the device any more.
    pub(crate) fn all_ended(&self) {
        self.record(|folder| {
            core_files(folder)?.into_iter().try_for_each(fs::remove_file)?;
            self.keep_suspects(folder)
        });
    }

    fn keep_suspects(&self, folder: &Path) -> io::Result<()> {
        // Written beside it first: a death in the middle must not forget the others.
        let (file, draft) = (folder.join(SUSPECTS_FILE), folder.join("suspects.draft"));
        write(&draft, &*self.suspects())?;
        fs::rename(draft, file)?;
        self.cleared.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// A job is not held up because its attempt cannot be written down.
    fn record(&self, write: impl FnOnce(&Path) -> io::Result<()>) {
        let Some(folder) = &self.folder else { return };
        if let Err(error) = write(folder)
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            tracing::error!(folder = %folder.display(), %error, "attempts cannot be recorded: a job that kills the process would not be found");
        }
    }
}

fn core_file(folder: &Path, core: usize) -> PathBuf {
    folder.join(format!("core-{core}.json"))
}

fn core_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("core-") && name.ends_with(".json") {
            files.push(path);
        }
    }
    Ok(files)
}

/// None where the file is missing or struck out, or was only half written when the process died.
fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    fs::write(path, serde_json::to_vec(value)?)
}

/// Writes without cutting the file first, which on some file systems sends what is written next straight to the disk.
/// Space at its end means nothing.
fn overwrite(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    let mut bytes = serde_json::to_vec(value)?;
    let before = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    bytes.resize(bytes.len().max(before), b' ');
    file.write_all(&bytes)
}

/// Makes nothing of what [`overwrite`] wrote, without cutting the file either.
fn strike_out(path: &Path) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(b" ")
}

#[cfg(test)]
mod tests {
    use schemas::{ModelName, TopicName};

    use super::*;

    fn origin(offset: i64) -> Origin {
        Origin {
            topic: TopicName::new("jobs").unwrap(),
            topic_id: TopicId::from_bytes([7; 16]),
            partition: 0,
            offset,
        }
    }

    fn batch(offsets: &[i64], alone: bool) -> MicroBatch {
        MicroBatch {
            model: ModelName::new("minilm").unwrap(),
            members: Vec::new(),
            texts: Vec::new(),
            jobs: offsets.iter().map(|offset| key(&origin(*offset))).collect(),
            alone,
        }
    }

    fn standings(attempts: &Attempts, offsets: std::ops::Range<i64>) -> Vec<Standing> {
        let suspects = attempts.suspects();
        offsets.map(|offset| suspects.standing(&origin(offset))).collect()
    }

    #[test]
    fn what_was_under_way_at_a_death_is_suspect_and_given_up_after_two_deaths_alone() {
        use Standing::{Clear, GivenUp, Suspect};
        let folder = tempfile::tempdir().unwrap();
        let start = || Attempts::open(folder.path()).unwrap();
        let first = start();
        first.begin(0, &batch(&[0, 1], false));
        first.begin(1, &batch(&[2], false));
        let second = start();
        assert_eq!(standings(&second, 0..4), [Suspect, Suspect, Suspect, Clear]);
        second.begin(0, &batch(&[0], true));
        second.end(0, &batch(&[0], true));
        second.begin(1, &batch(&[1], true));
        let third = start();
        assert_eq!(standings(&third, 0..4), [Clear, Suspect, Suspect, Clear]);
        third.begin(0, &batch(&[1], true));
        assert_eq!(standings(&start(), 0..4), [Clear, GivenUp, Suspect, Clear]);
    }

    #[test]
    fn a_job_that_kills_is_found_among_however_many_jobs_were_under_way() {
        use Standing::{Clear, GivenUp, Suspect};
        const MANY: i64 = SUSPECTS_MAX as i64 + 2;
        let folder = tempfile::tempdir().unwrap();
        let start = || Attempts::open(folder.path()).unwrap();
        let older = start();
        older.begin(0, &batch(&[MANY], false));
        let first = start();
        first.begin(0, &batch(&(0..MANY).collect::<Vec<_>>(), false));
        let second = start();
        assert_eq!(standings(&second, 0..MANY), vec![Suspect; MANY as usize]);
        assert_eq!(
            standings(&second, MANY..MANY + 1),
            [Clear],
            "it is of an earlier death"
        );
        second.begin(0, &batch(&[1], true));
        start().begin(0, &batch(&[1], true));
        assert_eq!(standings(&start(), 1..2), [GivenUp]);
    }

    #[test]
    fn what_had_ended_at_a_death_is_no_suspect() {
        let folder = tempfile::tempdir().unwrap();
        let attempts = Attempts::open(folder.path()).unwrap();
        for core in 0..2 {
            attempts.begin(core, &batch(&[0, 1], false));
            attempts.end(core, &batch(&[0, 1], false));
        }
        attempts.begin(1, &batch(&[2], false));
        let next = Attempts::open(folder.path()).unwrap();
        use Standing::{Clear, Suspect};
        assert_eq!(standings(&next, 0..3), [Clear, Clear, Suspect]);
    }

    #[test]
    fn most_of_many_suspects_that_were_cleared_are_so_after_a_death_too_and_all_after_an_orderly_end() {
        const MANY: i64 = 100;
        let folder = tempfile::tempdir().unwrap();
        let start = || Attempts::open(folder.path()).unwrap();
        start().begin(0, &batch(&(0..MANY).collect::<Vec<_>>(), false));
        let clears = |attempts: &Attempts, jobs: std::ops::Range<i64>| {
            for job in jobs {
                attempts.begin(0, &batch(&[job], true));
                attempts.end(0, &batch(&[job], true));
            }
        };
        let suspects = |attempts: &Attempts| {
            let standings = standings(attempts, 0..MANY);
            standings
                .iter()
                .filter(|standing| **standing == Standing::Suspect)
                .count()
        };
        clears(&start(), 0..50);
        let second = start();
        let left = suspects(&second);
        assert!((50..55).contains(&left), "{left}");
        clears(&second, 50..99);
        second.all_ended();
        assert_eq!(suspects(&start()), left - 49);
    }

    #[test]
    fn an_orderly_end_leaves_no_suspects() {
        let folder = tempfile::tempdir().unwrap();
        let attempts = Attempts::open(folder.path()).unwrap();
        attempts.begin(0, &batch(&[0], false));
        attempts.all_ended();
        let next = Attempts::open(folder.path()).unwrap();
        assert_eq!(standings(&next, 0..1), [Standing::Clear]);
    }

    #[test]
    fn a_short_attempt_leaves_nothing_of_a_longer_one_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let attempts = Attempts::open(folder.path()).unwrap();
        attempts.begin(0, &batch(&[0, 1, 2], false));
        attempts.begin(0, &batch(&[3], false));
        let next = Attempts::open(folder.path()).unwrap();
        use Standing::{Clear, Suspect};
        assert_eq!(standings(&next, 0..4), [Clear, Clear, Clear, Suspect]);
    }

    #[test]
    fn a_record_that_was_half_written_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(core_file(folder.path(), 0), "{\"alone\":tr").unwrap();
        let attempts = Attempts::open(folder.path()).unwrap();
        assert_eq!(*attempts.suspects(), Suspects::default());
    }
}
