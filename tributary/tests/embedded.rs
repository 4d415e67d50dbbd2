//! Stories of the embedded pipeline, told through the binary as a user runs it. The model is the pass-through one, which
//! needs no weights; what the real one answers is tested where it stands, in `processor`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

const MODEL: &str = "models.minilm.source=passthrough:384";

fn tributary(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_tributary"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.code().is_some(), "ended by a signal: {arguments:?}");
    output
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn demo(lake: &Path, more: &[&str]) -> Output {
    tributary(&[&["demo", "--lake", lake.to_str().unwrap(), "--set", MODEL], more].concat())
}

fn verify(lake: &Path) -> String {
    let output = tributary(&["verify", lake.to_str().unwrap(), "--data"]);
    assert!(output.status.success(), "{}", stdout(&output));
    stdout(&output)
}

#[test]
fn the_demo_gives_every_line_an_outcome_or_a_dead_letter_and_a_second_run_adds_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let first = demo(folder.path(), &[]);
    assert!(first.status.success(), "{}", stderr(&first));
    assert!(
        stdout(&first).contains("8 lines were no jobs at all"),
        "{}",
        stdout(&first)
    );
    let report = verify(folder.path());
    assert!(
        report.contains(" 559 outcomes") && report.contains("sound: no gap, no overlap, no duplicate"),
        "{report}"
    );
    assert!(!report.contains("not checked"), "{report}");

    let second = demo(folder.path(), &[]);
    assert!(second.status.success(), "{}", stderr(&second));
    assert_eq!(
        job_counts(&stdout(&first)),
        job_counts(&stdout(&second)),
        "a run sums up its own jobs only"
    );
    assert!(verify(folder.path()).contains(" 1118 outcomes"));
}

/// The number of jobs of each tenant, from the summary.
fn job_counts(summary: &str) -> Vec<(String, String)> {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let rows = summary.lines().map(words).filter(|words| words.len() == 10);
    rows.map(|words| (words[0].clone(), words[1].clone())).collect()
}

#[test]
fn a_users_own_jobs_run_whatever_is_among_them() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = folder.path().join("jobs.jsonl");
    let good = r#"{"id":"a","tenant":"acme","model":"minilm","input":"Hello"}"#;
    let huge = format!(
        r#"{{"id":"b","tenant":"acme","model":"minilm","input":"{}"}}"#,
        "x".repeat(20 << 20)
    );
    let bytes = [
        good.as_bytes(),
        b"\n\xff\xfe\n\n",
        huge.as_bytes(),
        b"\n",
        good.as_bytes(),
    ]
    .concat();
    std::fs::write(&jobs, bytes).unwrap();
    let output = demo(&folder.path().join("lake"), &["--jobs", jobs.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(
        text.contains("1 input_too_large") && text.contains("1 lines were no jobs"),
        "{text}"
    );
    assert!(verify(&folder.path().join("lake")).contains(" 3 outcomes"));
}

#[test]
fn dead_letters_are_listed_shown_as_they_were_and_replayed_once() {
    let folder = tempfile::tempdir().unwrap();
    let (jobs, lake) = (folder.path().join("jobs.jsonl"), folder.path().join("lake"));
    let run = || demo(&lake, &["--jobs", jobs.to_str().unwrap()]);
    std::fs::write(&jobs, b"{oops \xff}\n").unwrap();
    assert!(run().status.success());
    let topics = format!("topics.path={}", lake.join("_topics.redb").display());
    let letters = |arguments: &[&str]| tributary(&[&["dead-letters", "--set", &topics], arguments].concat());

    let listed = stdout(&letters(&["list"]));
    assert!(
        listed.contains("1 dead letters, 1 not replayed") && listed.contains("jobs["),
        "{listed}"
    );
    assert!(stdout(&letters(&["show", "0"])).contains("8 bytes"));
    assert_eq!(letters(&["show", "0", "--raw"]).stdout, b"{oops \xff}");
    let unknown = letters(&["show", "9"]);
    assert!(
        stderr(&unknown).contains("there is no dead letter 9"),
        "{}",
        stderr(&unknown)
    );

    let replayed = letters(&["replay", "0", "0"]);
    assert!(
        stdout(&replayed).starts_with("1 put back"),
        "{}",
        stderr(&replayed)
    );
    let again = letters(&["replay", "0"]);
    assert!(
        !again.status.success() && stderr(&again).contains("was replayed before"),
        "{}",
        stderr(&again)
    );
    assert!(stdout(&letters(&["replay", "--all"])).starts_with("0 put back"));

    write_jobs(&jobs, 1);
    assert!(run().status.success());
    let listed = stdout(&letters(&["list", "--json"]));
    let states: Vec<bool> = listed
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["replayed"]
                .as_bool()
                .unwrap()
        })
        .collect();
    assert_eq!(states, [true, false], "it came again, and is no better: {listed}");
}

#[test]
fn what_a_lake_recorded_is_replayed_under_other_tenants_and_their_quotas() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, file) = (folder.path().join("lake"), folder.path().join("tenants.toml"));
    assert!(demo(&lake, &[]).status.success());
    let tenants = "[tenants.acme]\nweight = 100\n[tenants.globex]\nbudget = { per_day = \"0\" }\n";
    std::fs::write(&file, tenants).unwrap();
    let arguments = [
        "simulate",
        file.to_str().unwrap(),
        "--lake",
        lake.to_str().unwrap(),
        "--set",
        MODEL,
        "--set",
        "models.minilm.price_per_device_second=1",
        "--set",
        "tenants.acme.weight=1",
        "--set",
        "tenants.globex.weight=1",
        "--set",
        "tenants.initech.weight=1",
    ];
    let simulated = tributary(&arguments);
    assert!(simulated.status.success(), "{}", stderr(&simulated));
    let said = stdout(&simulated);
    let line = |tenant: &str, set: &str| -> Vec<&str> {
        let of_tenant = said.lines().filter_map(|line| line.strip_prefix(tenant));
        let mut of_set = of_tenant.filter_map(|line| line.trim_start().strip_prefix(set));
        of_set.next().unwrap().split_whitespace().collect()
    };
    let sets = ["recorded", "in force", "file"];
    let [recorded, in_force, file] = sets.map(|set| line("acme", set));
    assert_eq!(
        [in_force[0], file[0]],
        [recorded[0]; 2],
        "all of them run: {said}"
    );
    let median = |line: &[&str]| line[1].parse::<f64>().unwrap();
    assert!(median(&file) <= median(&in_force), "{said}");
    let [recorded, file] = ["recorded", "file"].map(|set| line("globex", set));
    assert_eq!(file, ["0", "-", "-", "0", recorded[0], "0"], "{said}");
    assert_eq!(line("initech", "file"), ["elsewhere"], "{said}");
}

#[test]
fn verify_names_what_was_tampered_with() {
    let folder = tempfile::tempdir().unwrap();
    assert!(demo(folder.path(), &[]).status.success());
    let ranges = files(&folder.path().join("_ranges"));
    let results = files(&folder.path().join("results"));
    let offence = |change: &dyn Fn(), undo: &dyn Fn()| {
        change();
        let output = tributary(&["verify", folder.path().to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
        undo();
        stdout(&output)
    };
    let (file, elsewhere) = (results[0].clone(), folder.path().join("elsewhere"));
    let stranger = file.with_file_name("stranger.parquet");
    let copied = offence(&|| assert!(std::fs::copy(&file, &stranger).unwrap() > 0), &|| {
        std::fs::remove_file(&stranger).unwrap()
    });
    assert!(copied.contains("no range names"), "{copied}");
    let bytes = std::fs::read(&file).unwrap();
    let cut = offence(
        &|| std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap(),
        &|| std::fs::write(&file, &bytes).unwrap(),
    );
    assert!(cut.contains("no readable Parquet"), "{cut}");
    let range = std::fs::read_to_string(&ranges[0]).unwrap();
    let changed = offence(
        &|| {
            std::fs::write(
                &ranges[0],
                range.replace("\"duplicates\": 0", "\"duplicates\": 1"),
            )
            .unwrap()
        },
        &|| std::fs::write(&ranges[0], &range).unwrap(),
    );
    assert!(changed.contains("intent_digest"), "{changed}");
    let lost = offence(&|| std::fs::rename(&ranges[0], &elsewhere).unwrap(), &|| {
        std::fs::rename(&elsewhere, &ranges[0]).unwrap();
    });
    assert!(lost.contains("no range names"), "{lost}");
    verify(folder.path());
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path))
        } else {
            found.push(path)
        }
    }
    found.sort();
    found
}

/// A running `tributary up`, killed when dropped.
struct Up {
    process: Child,
    url: String,
}

impl Up {
    fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[])
    }

    fn start_with(folder: &Path, more: &[&str]) -> Self {
        let topics = format!("topics.path={}", folder.join("topics.redb").display());
        let lake = format!("sink.url={}", folder.join("lake").display());
        let settings = [
            &topics,
            &lake,
            "http.listen=127.0.0.1:0",
            MODEL,
            "log.format=json",
            "sink.flush_interval_ms=200",
        ];
        let mut command = Command::new(env!("CARGO_BIN_EXE_tributary"));
        command.arg("up").stderr(Stdio::piped());
        for setting in settings.iter().chain(more) {
            command.args(["--set", setting]);
        }
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let started = lines
            .find_map(|line| line.ok().filter(|line| line.contains("started")))
            .unwrap();
        let started: serde_json::Value = serde_json::from_str(&started).unwrap();
        let url = format!("http://{}", started["address"].as_str().unwrap());
        // Whoever writes to a pipe that nobody reads stops at some time.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, url }
    }

    fn end(mut self, signal: &str) {
        Command::new("kill")
            .args([signal, &self.process.id().to_string()])
            .status()
            .unwrap();
        let status = self.process.wait().unwrap();
        assert_eq!(status.success(), signal == "-TERM", "{status}");
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn write_jobs(path: &Path, count: usize) {
    let job = |number| {
        format!(r#"{{"id":"{number}","tenant":"acme","model":"minilm","input":"Text number {number}"}}"#)
    };
    std::fs::write(
        path,
        (0..count).map(|number| job(number) + "\n").collect::<String>(),
    )
    .unwrap();
}

#[test]
fn jobs_submitted_over_http_survive_a_kill_and_each_ends_once() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = folder.path().join("jobs.jsonl");
    write_jobs(&jobs, 5_000);
    let up = Up::start(folder.path());
    let submitted = tributary(&["submit", jobs.to_str().unwrap(), "--to", &up.url]);
    assert!(
        stdout(&submitted).contains("5000 jobs accepted, 0 lines refused"),
        "{}",
        stderr(&submitted)
    );
    up.end("-KILL");
    let up = Up::start(folder.path());
    let submitted = tributary(&["submit", jobs.to_str().unwrap(), "--to", &up.url]);
    assert!(submitted.status.success(), "{}", stderr(&submitted));
    wait_for(|| {
        let output = tributary(&["verify", folder.path().join("lake").to_str().unwrap()]);
        stdout(&output).contains(" 10000 outcomes")
    });
    up.end("-TERM");
    assert!(verify(&folder.path().join("lake")).contains(" 10000 outcomes"));
}

/// The value of a metric of a running `up`, 0 where it was never counted.
fn metric(up: &Up, name: &str) -> u64 {
    let text = metrics(up);
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.map_or(0, |value| value.trim().parse().unwrap())
}

fn metrics(up: &Up) -> String {
    get(up, "/metrics", None)
}

/// What a running `up` answers, status and headers first.
fn get(up: &Up, path: &str, token: Option<&str>) -> String {
    let address = up.url.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let header = token.map(|token| format!("authorization: Bearer {token}\r\n"));
    let request = format!("GET {path} HTTP/1.0\r\n{}\r\n", header.unwrap_or_default());
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Moves a file with this `text` over the one at `path`.
fn replace(path: &Path, text: &str) {
    let aside = path.with_extension("new");
    std::fs::write(&aside, text).unwrap();
    std::fs::rename(&aside, path).unwrap();
}

#[test]
fn tenants_come_and_go_while_jobs_flow_and_a_broken_file_changes_nothing() {
    const ROUND_JOBS: usize = 200;
    let folder = tempfile::tempdir().unwrap();
    let (tenants, jobs) = (
        folder.path().join("tenants.toml"),
        folder.path().join("jobs.jsonl"),
    );
    write_jobs(&jobs, ROUND_JOBS);
    let put = |text: &str| replace(&tenants, text);
    let (with_acme, without) = (
        "[tenants.acme]\nlabels = { desk = '7' }\n[tenants.globex]\n",
        "[tenants.globex]\n",
    );
    put(with_acme);
    let path = format!("tenants_path={}", tenants.display());
    let terms = "models.minilm.price_per_device_second=0.5";
    let up = Up::start_with(folder.path(), &[&path, terms]);
    let submit = || {
        let submitted = tributary(&["submit", jobs.to_str().unwrap(), "--to", &up.url]);
        assert!(submitted.status.success(), "{}", stderr(&submitted));
    };
    let sets = |result: &str| {
        metric(
            &up,
            &format!("tributary_tenant_sets_total{{result=\"{result}\"}}"),
        )
    };
    let decided = |tenant: &str, decision: &str| {
        let labels = format!("{{tenant=\"{tenant}\",decision=\"{decision}\"}}");
        metric(&up, &format!("tributary_ingest_decided_total{labels}"))
    };
    let all_decided = |jobs: usize| {
        wait_for(|| decided("acme", "admitted") + decided("unclaimed", "rejected") == jobs as u64);
    };

    // Each set is in force before its round of jobs, and the next one comes while they are under way.
    submit();
    all_decided(ROUND_JOBS);
    put(without);
    wait_for(|| sets("taken") == 1);
    submit();
    all_decided(2 * ROUND_JOBS);
    assert_eq!(decided("unclaimed", "rejected"), ROUND_JOBS as u64);
    for (broken, count) in [
        ("[tenants.acme]\nweigth = 2\n", 1),
        ("[tenants.globex]\npartitions = 2\n", 2),
        ("", 3),
    ] {
        put(broken);
        wait_for(|| sets("refused") == count);
        submit();
    }
    all_decided(5 * ROUND_JOBS);
    assert_eq!(
        (decided("acme", "admitted"), decided("unclaimed", "rejected")),
        (ROUND_JOBS as u64, 4 * ROUND_JOBS as u64),
        "the old set stays in force"
    );
    put(with_acme);
    wait_for(|| sets("taken") == 2);
    submit();
    all_decided(6 * ROUND_JOBS);
    assert_eq!(decided("acme", "admitted"), 2 * ROUND_JOBS as u64);

    let outcomes = format!(" {} outcomes", 6 * ROUND_JOBS);
    wait_for(|| {
        let report = tributary(&["verify", folder.path().join("lake").to_str().unwrap()]);
        stdout(&report).contains(&outcomes)
    });
    up.end("-TERM");
    assert!(verify(&folder.path().join("lake")).contains(&outcomes));
}

/// A public key and tokens that its owner signed for acme, with the audience `tributary`: one that is good until 2099, and
/// one that was until 1970.
const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAFtMXL23lvc49+fFfFyEYx/g03IgJpbf7uCp5wa/J8y4=\n-----END PUBLIC KEY-----\n";
const STRANGERS_KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAHIv/qFzgqfEBOHDn9BEF6HTuqPsy3MC9giAq6nIQEpQ=\n-----END PUBLIC KEY-----\n";
const TOKEN: &str = "eyJ0eXAiOiJKV1QiLCJhbGciOiJFZERTQSIsImtpZCI6ImVkLTEifQ.eyJhdWQiOiJ0cmlidXRhcnkiLCJleHAiOjQwNzA5MDg4MDAsInRlbmFudCI6ImFjbWUifQ.p3Gq0P7qC1WFoe49WwXgDnGQUoqduRxfMlkmmdqcWp4HdAPJzj7wV4EZvhAYDVRWpPxfm7Q-EP3AATsPOLhFAw";
const EXPIRED_TOKEN: &str = "eyJ0eXAiOiJKV1QiLCJhbGciOiJFZERTQSIsImtpZCI6ImVkLTEifQ.eyJhdWQiOiJ0cmlidXRhcnkiLCJleHAiOjEsInRlbmFudCI6ImFjbWUifQ.xhjhEzg5QMA2NYRjEtIgQlgcZMXhDxMyf2VVuFBEAzRdpk7dP6Fev65vRzauZxAtQ8DYPANsYYNdMxo9yW9ZDw";

#[test]
fn where_a_token_is_demanded_only_its_tenant_is_served_and_nothing_repeats_it() {
    const JOBS: usize = 20;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let jobs = folder.path().join("jobs.jsonl");
    write_jobs(&jobs, JOBS);
    let of_globex = r#"{"id":"g","tenant":"globex","model":"minilm","input":"x"}"#;
    let broken = file("broken.jsonl", "{oops\n");
    let [jobs, of_globex] = [jobs.display().to_string(), file("globex.jsonl", of_globex)];
    let [good, expired] = [file("good", TOKEN), file("expired", EXPIRED_TOKEN)];
    let keys = file("keys.pem", KEY);
    let settings = [
        "identity.required=shared".to_owned(),
        "identity.audience=tributary".to_owned(),
        format!("identity.keys={keys}"),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let up = Up::start_with(folder.path(), &settings);
    let submit = |jobs: &str, token: &[&str]| {
        let output = tributary(&[&["submit", jobs, "--to", &up.url], token].concat());
        (output.status.success(), stdout(&output) + &stderr(&output))
    };
    let decided = |tenant: &str, decision: &str| {
        let labels = format!("{{tenant=\"{tenant}\",decision=\"{decision}\"}}");
        metric(&up, &format!("tributary_ingest_decided_total{labels}"))
    };
    let refused = |code: &str| {
        metric(
            &up,
            &format!("tributary_ingest_http_refused_total{{reason_code=\"{code}\"}}"),
        )
    };

    let many = folder.path().join("many.jsonl");
    write_jobs(&many, 20_000);
    for jobs in [&jobs, &many.display().to_string()] {
        let (sent, text) = submit(jobs, &[]);
        assert!(
            !sent && text.contains("answers 401") && text.contains("token_missing"),
            "{text}"
        );
    }
    let (sent, text) = submit(&jobs, &["--token", &expired]);
    assert!(
        !sent && text.contains("answers 401") && text.contains("token_expired"),
        "{text}"
    );
    assert_eq!((refused("token_missing"), refused("token_expired")), (2, 1));
    assert_eq!(
        submit(&jobs, &["--token", &good]),
        (true, format!("{JOBS} jobs accepted, 0 lines refused\n"))
    );
    assert!(
        submit(&of_globex, &["--token", &good]).0,
        "whose a job is is decided behind the door"
    );
    assert!(!submit(&broken, &["--token", &good]).0);
    wait_for(|| decided("acme", "admitted") == JOBS as u64 && decided("acme", "rejected") == 1);
    assert_eq!(
        decided("globex", "admitted") + decided("unclaimed", "rejected"),
        0
    );

    let key_sets = |result: &str| metric(&up, &format!("tributary_key_sets_total{{result=\"{result}\"}}"));
    file("keys.pem", "rubbish");
    wait_for(|| key_sets("refused") == 1);
    assert!(submit(&jobs, &["--token", &good]).0, "the old key stays in force");
    file("keys.pem", STRANGERS_KEY);
    wait_for(|| key_sets("taken") == 1);
    let (sent, text) = submit(&jobs, &["--token", &good]);
    assert!(
        !sent && text.contains("token_invalid") && text.contains("signature"),
        "{text}"
    );

    let outcomes = format!(" {} outcomes", 2 * JOBS + 1);
    let lake = folder.path().join("lake");
    wait_for(|| stdout(&tributary(&["verify", lake.to_str().unwrap()])).contains(&outcomes));
    let metrics = metrics(&up);
    up.end("-TERM");
    let signature = TOKEN.rsplit('.').next().unwrap();
    assert!(!metrics.contains(signature) && !text.contains(signature));
    for path in files(&lake) {
        let bytes = std::fs::read(&path).unwrap();
        let found = bytes
            .windows(signature.len())
            .any(|part| part == signature.as_bytes());
        assert!(!found, "{}", path.display());
    }
}

/// Tokens that the owner of the same key signed: for a submitter of acme, and for a reader of no tenant.
const SUBMITTERS_TOKEN: &str = "eyJ0eXAiOiJKV1QiLCJhbGciOiJFZERTQSIsImtpZCI6ImVkLTEifQ.eyJhdWQiOiJ0cmlidXRhcnkiLCJleHAiOjQwNzA5MDg4MDAsInN1YiI6ImFkYSIsInRlbmFudCI6ImFjbWUiLCJyb2xlcyI6WyJzdWJtaXR0ZXIiXX0.GVGCGOKCdP07xBg8xlMse8r6Z3ctx09Jjf7vQUXztDYY-mPonypI5hLwOXYoWm6pVaopdsELdApvDzFYY2T8Dw";
const READERS_TOKEN: &str = "eyJ0eXAiOiJKV1QiLCJhbGciOiJFZERTQSIsImtpZCI6ImVkLTEifQ.eyJhdWQiOiJ0cmlidXRhcnkiLCJleHAiOjQwNzA5MDg4MDAsInN1YiI6InByb21ldGhldXMiLCJyb2xlcyI6WyJyZWFkZXIiXX0.xZA3KNGozL7ZUNQue-wX9EVJiY_XJAAajDIgx2sQUOovyX2bR4Y5eLUlbbR6wcdfsDuyeV7-9YE5cMYaLpbfDg";

#[test]
fn access_policies_change_while_jobs_flow_and_a_broken_file_changes_nothing() {
    const ROUND_JOBS: usize = 200;
    let folder = tempfile::tempdir().unwrap();
    let (policies, jobs) = (
        folder.path().join("policies.cedar"),
        folder.path().join("jobs.jsonl"),
    );
    write_jobs(&jobs, ROUND_JOBS);
    let put = |text: &str| replace(&policies, text);
    let built_in = stdout(&tributary(&["policy", "show"]));
    let without_acme = format!(
        "{built_in}@id(\"not-acme\") forbid (principal == Tenant::\"acme\", action == Action::\"submit\", resource);\n"
    );
    put(&built_in);
    let path = format!("authority.policies={}", policies.display());
    let up = Up::start_with(folder.path(), &[&path]);
    let submit = || {
        let submitted = tributary(&["submit", jobs.to_str().unwrap(), "--to", &up.url]);
        assert!(submitted.status.success(), "{}", stderr(&submitted));
    };
    let sets = |result: &str| {
        metric(
            &up,
            &format!("tributary_access_policy_sets_total{{result=\"{result}\"}}"),
        )
    };
    let decided = |decision: &str| {
        let labels = format!("{{tenant=\"acme\",decision=\"{decision}\"}}");
        metric(&up, &format!("tributary_ingest_decided_total{labels}"))
    };
    let all_decided = |jobs: usize| wait_for(|| decided("admitted") + decided("rejected") == jobs as u64);

    // Each set is in force before its round of jobs, and the next one comes while they are under way.
    submit();
    all_decided(ROUND_JOBS);
    put(&without_acme);
    wait_for(|| sets("taken") == 1);
    submit();
    all_decided(2 * ROUND_JOBS);
    for (broken, count) in [
        (built_in.replace("Role::\"reader\"", "Role::\"raeder\""), 1),
        (built_in.replace("@id(\"a-reader-looks-on\")", ""), 2),
        (String::new(), 3),
    ] {
        put(&broken);
        wait_for(|| sets("refused") == count);
        submit();
    }
    all_decided(5 * ROUND_JOBS);
    assert_eq!(
        (decided("admitted"), decided("rejected")),
        (ROUND_JOBS as u64, 4 * ROUND_JOBS as u64),
        "the old policies stay in force"
    );
    let rejected = "tributary_ingest_rejected_total{tenant=\"acme\",reason_code=\"not_permitted\"}";
    assert_eq!(metric(&up, rejected), 4 * ROUND_JOBS as u64);
    put(&built_in);
    wait_for(|| sets("taken") == 2);
    submit();
    all_decided(6 * ROUND_JOBS);
    assert_eq!(decided("admitted"), 2 * ROUND_JOBS as u64);

    let (outcomes, lake) = (
        format!(" {} outcomes", 6 * ROUND_JOBS),
        folder.path().join("lake"),
    );
    wait_for(|| stdout(&tributary(&["verify", lake.to_str().unwrap()])).contains(&outcomes));
    up.end("-TERM");
    assert!(verify(&lake).contains(&outcomes));
}

#[test]
fn routes_ask_who_comes_and_a_role_in_a_token_opens_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/policies.cedar");
    let settings = [
        "identity.required=shared".to_owned(),
        "identity.audience=tributary".to_owned(),
        "identity.roles_claim=roles".to_owned(),
        format!("identity.keys={}", file("keys.pem", KEY)),
        format!("authority.policies={example}"),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let up = Up::start_with(folder.path(), &settings);
    for (path, token, status, complaint) in [
        ("/health", None, "", "\"state\""),
        (
            "/metrics",
            None,
            "401",
            "a stranger may not viewMetrics: no policy permits it",
        ),
        (
            "/metrics",
            Some(TOKEN),
            "403",
            "without a role, may not viewMetrics",
        ),
        (
            "/metrics",
            Some(SUBMITTERS_TOKEN),
            "403",
            "in the role of submitter, may not",
        ),
        ("/metrics", Some(EXPIRED_TOKEN), "401", "token_expired"),
        ("/metrics", Some("rubbish"), "401", "token_invalid"),
        ("/metrics", Some(READERS_TOKEN), "200", "not_permitted\"} 3"),
    ] {
        let answer = get(&up, path, token);
        let status = format!("HTTP/1.0 {status}");
        assert!(
            answer.starts_with(&status) && answer.contains(complaint),
            "{path} {token:?}: {answer}"
        );
    }
    let jobs = folder.path().join("jobs.jsonl");
    write_jobs(&jobs, 1);
    let submit = |token: &str| {
        let token = file("token", token);
        let jobs = jobs.to_str().unwrap();
        let output = tributary(&["submit", jobs, "--to", &up.url, "--token", &token]);
        (output.status.success(), stdout(&output) + &stderr(&output))
    };
    let (sent, text) = submit(TOKEN);
    assert!(
        !sent && text.contains("answers 403") && text.contains("may not postJobs"),
        "{text}"
    );
    let (sent, text) = submit(READERS_TOKEN);
    assert!(!sent && text.contains("claim `tenant` is missing"), "{text}");
    let (sent, text) = submit(SUBMITTERS_TOKEN);
    assert!(sent, "{text}");
    let lake = folder.path().join("lake");
    wait_for(|| stdout(&tributary(&["verify", lake.to_str().unwrap()])).contains(" 1 outcomes"));
    up.end("-TERM");
}

#[test]
fn commands_ask_whether_whoever_gives_them_may() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().join("lake");
    assert!(demo(&lake, &[]).status.success());
    let (lake, topics) = (
        lake.to_str().unwrap(),
        format!("topics.path={}", lake.join("_topics.redb").display()),
    );
    let given = |user: &str, arguments: &[&str]| {
        let settings = [
            "authority.users.ada=[\"auditor\"]",
            "authority.command_roles=[\"finance\"]",
            &topics,
        ];
        let output = Command::new(env!("CARGO_BIN_EXE_tributary"))
            .env("USER", user)
            .args(arguments)
            .args(settings.iter().flat_map(|setting| ["--set", setting]))
            .output()
            .unwrap();
        (output.status.success(), stderr(&output))
    };
    let (audit, letters, replay) = (
        &["audit", "verify", lake][..],
        &["dead-letters", "list"][..],
        &["dead-letters", "replay", "--all"][..],
    );
    assert!(given("ada", audit).0);
    assert!(given("grace", &["verify", lake]).0);
    for (user, command, complaint) in [
        (
            "grace",
            audit,
            "`grace`, in the role of finance, may not verifyAudit: no policy permits it",
        ),
        (
            "ada",
            letters,
            "`ada`, in the role of auditor, may not viewDeadLetters",
        ),
        (
            "ada",
            replay,
            "`ada`, in the role of auditor, may not replayDeadLetters",
        ),
    ] {
        let (is_done, text) = given(user, command);
        assert!(!is_done && text.contains(complaint), "{user} {command:?}: {text}");
    }
    assert!(
        stdout(&tributary(&["dead-letters", "list", "--set", &topics])).contains("8 not replayed"),
        "what was refused was not done"
    );
}

#[test]
fn access_policies_are_shown_checked_and_tested() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let of_repository = |path: &str| format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"));
    let (tests, example) = (
        of_repository("deploy/policies.test.toml"),
        of_repository("deploy/policies.cedar"),
    );
    let tested = tributary(&["policy", "test", &tests, "--policies", &example]);
    assert!(
        tested.status.success() && stdout(&tested).contains(" cases, 0 failed"),
        "{}{}",
        stdout(&tested),
        stderr(&tested)
    );
    let tested = tributary(&["policy", "test", &tests]);
    assert_eq!(tested.status.code(), Some(1));
    assert!(
        stdout(&tested).contains("a stranger sees no metrics: expected to be refused, and is allowed by: anybody-looks-at-health-and-metrics"),
        "{}",
        stdout(&tested)
    );

    let built_in = stdout(&tributary(&["policy", "show"]));
    let in_force = format!("authority.policies={}", file("policies.cedar", &built_in));
    let checked = tributary(&["policy", "check", "--set", &in_force]);
    assert!(
        checked.status.success() && stdout(&checked).contains("9 policies"),
        "{}",
        stderr(&checked)
    );
    let broken = file(
        "broken.cedar",
        "@id(\"a\")\npermit (principal in Role::\"opreator\", action, resource);\n",
    );
    let checked = tributary(&["policy", "check", &broken]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(
        stderr(&checked).contains("broken.cedar`, line 2: ") && stderr(&checked).contains("opreator"),
        "{}",
        stderr(&checked)
    );
    let schema = stdout(&tributary(&["policy", "show", "--schema"]));
    assert!(schema.contains("entity Role enum"), "{schema}");
}

#[test]
fn a_tenants_file_is_planned_shown_and_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let (config, now, next) = (
        folder.path().join("tributary.toml"),
        folder.path().join("now.toml"),
        folder.path().join("next.toml"),
    );
    let model = "[models.minilm]\nsource = 'passthrough:4'\nprice_per_device_second = '1'\n";
    let path = format!("tenants_path = '{}'\n{model}", now.display());
    std::fs::write(&config, path).unwrap();
    std::fs::write(&now, "[tenants.acme]\nweight = 2\n").unwrap();
    let tenants = |arguments: &[&str]| {
        tributary(&[&["tenants", "--config", config.to_str().unwrap()], arguments].concat())
    };
    let next_path = next.to_str().unwrap();
    let planned = |text: &str| {
        std::fs::write(&next, text).unwrap();
        tenants(&["plan", next_path])
    };

    let plan = planned("[tenants.acme]\nweight = 3\n[tenants.globex]\n");
    assert!(
        plan.status.success() && stdout(&plan).contains("added globex; changed acme: weight (2 to 3)"),
        "{}",
        stderr(&plan)
    );
    let moved = planned("[tenants.acme]\npool = 'gold'\n");
    assert_eq!(moved.status.code(), Some(1));
    assert!(stderr(&moved).contains("tenants.acme.pool"), "{}", stderr(&moved));
    let broken = planned("[tenants.acme]\n\nweigth = 3\n");
    assert!(
        stderr(&broken).contains("line 3") && stderr(&broken).contains("did you mean `tenants.acme.weight`?"),
        "{}",
        stderr(&broken)
    );
    let applied = tenants(&["apply", now.to_str().unwrap()]);
    assert!(
        !applied.status.success() && stderr(&applied).contains("write to that file"),
        "{}",
        stderr(&applied)
    );

    let shown = stdout(&tenants(&["show"]));
    assert!(
        shown.contains("[tenants.acme]") && shown.contains("weight = 2"),
        "{shown}"
    );
    let acls = stdout(&tenants(&["show", "--acls"]));
    assert!(acls.contains("--topic jobs.acme"), "{acls}");
    let policy = tenants(&["show", "--store-policy", "acme", "--set", "sink.url=s3://lake"]);
    assert!(
        stdout(&policy).contains("results/tenant=acme/*"),
        "{}",
        stderr(&policy)
    );
}

#[test]
fn refused_lines_are_named_and_the_others_are_sent() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = folder.path().join("jobs.jsonl");
    std::fs::write(
        &jobs,
        "{\"id\":\"1\",\"model\":\"minilm\",\"input\":\"a\"}\n\n{oops\n",
    )
    .unwrap();
    let up = Up::start(folder.path());
    let submitted = tributary(&["submit", jobs.to_str().unwrap(), "--to", &up.url]);
    assert!(!submitted.status.success());
    let text = stdout(&submitted);
    assert!(
        text.contains("1 jobs accepted, 1 lines refused") && text.contains("line 3: not a job"),
        "{text}"
    );
    // The answers have many times as many bytes.
    std::fs::write(&jobs, "x\n".repeat(600_000)).unwrap();
    let submitted = tributary(&["submit", jobs.to_str().unwrap(), "--to", &up.url]);
    let text = stdout(&submitted) + &stderr(&submitted);
    assert!(
        text.contains("600000 lines refused") && text.contains("line 1: not a job"),
        "{text}"
    );
    wait_for(|| tributary(&["health", "--url", &up.url]).status.success());
    up.end("-TERM");
}

/// Waits, for a minute at most, until `holds`; each look is a process of its own, so it does not spin.
fn wait_for(mut holds: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(
            began.elapsed().as_secs() < 60,
            "it did not come to hold within a minute"
        );
    }
}

#[test]
fn a_reader_of_completions_that_goes_away_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tributary"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn a_mistake_is_answered_with_its_remedy() {
    for (arguments, complaint) in [
        (
            &["sink"][..],
            "run all services in one process with `tributary up`",
        ),
        (&["config", "--set", "sink.ulr=x"], "did you mean `sink.url`?"),
        (
            &["config", "--config", "/nowhere.toml"],
            "configuration file `/nowhere.toml` cannot be read",
        ),
        (&["demo", "--lake", "/proc/lake"], "lake `/proc/lake`"),
        (
            &["demo", "--jobs", "/nowhere.jsonl"],
            "jobs file `/nowhere.jsonl`",
        ),
        (
            &["up", "--set", "http.listen=nowhere"],
            "cannot listen on nowhere",
        ),
        (
            &["submit", "Cargo.toml", "--to", "http://127.0.0.1:1"],
            "is `tributary up` running there?",
        ),
        (&["health", "--url", "http://127.0.0.1:1"], "no answer from"),
        (
            &["up", "--set", "identity.required=shared"],
            "identity.audience is not set",
        ),
        (
            &[
                "up",
                "--set",
                "identity.required=shared",
                "--set",
                "identity.audience=tributary",
            ],
            "identity.keys is not set",
        ),
        (
            &[
                "up",
                "--set",
                "http.listen=127.0.0.1:0",
                "--set",
                "identity.required=everywhere",
                "--set",
                "identity.audience=tributary",
                "--set",
                "identity.keys=/nowhere.json",
            ],
            "key file of identity.keys `/nowhere.json` cannot be read",
        ),
        (&["config", "--set", "identity.leeway_s=3600"], "300 is the most"),
        (
            &["verify", "/nowhere"],
            "the lake `/nowhere` cannot be opened: there is no such folder",
        ),
        (&["audit", "verify", "src"], "no sink has written there"),
        (
            &["verify", "lake", "--set", "authority.policies=/nowhere.cedar"],
            "policy file `/nowhere.cedar` cannot be read",
        ),
        (
            &["config", "--set", "authority.command_roles=[\"opreator\"]"],
            "setting `authority.command_roles",
        ),
        (
            &["config", "--set", "identity.requried=shared"],
            "did you mean `identity.required`?",
        ),
    ] {
        let output = tributary(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(
            stderr(&output).contains(complaint),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let output = tributary(&[
        "demo",
        "--lake",
        folder.path().to_str().unwrap(),
        "--set",
        "models.minilm.source=/nowhere",
    ]);
    assert!(
        stderr(&output).contains("minilm") && stderr(&output).contains("/nowhere"),
        "{}",
        stderr(&output)
    );
}
