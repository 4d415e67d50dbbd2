//! When a file that somebody edits has new content: a decision a look. Pure.

use std::{fs::Metadata, os::unix::fs::MetadataExt, time::SystemTime};

/// What changes when a file is written, or another is moved to its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    modified: Option<SystemTime>,
    size_bytes: u64,
    inode: u64,
}

impl Stamp {
    pub(crate) fn of(file: &Metadata) -> Self {
        Self {
            modified: file.modified().ok(),
            size_bytes: file.len(),
            inode: file.ino(),
        }
    }
}

/// What to do after a look.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing happened.
    Wait,
    /// See what is in it.
    Read,
    /// It cannot be read since this look.
    Complain,
}

/// A file as it was seen so far.
#[derive(Debug)]
pub(crate) struct FileWatch {
    stamp: Option<Stamp>,
    text: String,
    /// Seen once: whoever writes it may not be done.
    unsettled: Option<String>,
    is_gone: bool,
}

impl FileWatch {
    /// A file whose content is known.
    pub(crate) fn new(text: String) -> Self {
        Self {
            stamp: None,
            text,
            unsettled: None,
            is_gone: false,
        }
    }

    /// Takes in a look at the file.
    pub(crate) fn look(&mut self, stamp: &Stamp) -> Next {
        if self.stamp.as_ref() == Some(stamp) && self.unsettled.is_none() {
            Next::Wait
        } else {
            Next::Read
        }
    }

    /// Takes in that the file could not be looked at, or not be read.
    pub(crate) fn fail(&mut self) -> Next {
        self.stamp = None;
        if std::mem::replace(&mut self.is_gone, true) {
            Next::Wait
        } else {
            Next::Complain
        }
    }

    /// Takes in what was read after a look, and gives it back where it is new and stood there at two looks in a row.
    pub(crate) fn read(&mut self, stamp: Stamp, text: String) -> Option<&str> {
        self.stamp = Some(stamp);
        self.is_gone = false;
        if text == self.text {
            self.unsettled = None;
            None
        } else if self.unsettled.as_ref() == Some(&text) {
            self.unsettled = None;
            self.text = text;
            Some(&self.text)
        } else {
            self.unsettled = Some(text);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(inode: u64) -> Stamp {
        Stamp {
            modified: Some(SystemTime::UNIX_EPOCH),
            size_bytes: 7,
            inode,
        }
    }

    /// What is taken from a file that holds `text` at this look.
    fn look(watch: &mut FileWatch, inode: u64, text: &str) -> Option<String> {
        match watch.look(&stamp(inode)) {
            Next::Read => watch.read(stamp(inode), text.to_owned()).map(str::to_owned),
            Next::Wait => None,
            Next::Complain => panic!("it is there"),
        }
    }

    #[test]
    fn new_content_is_taken_once_and_only_when_it_stood_still() {
        let mut watch = FileWatch::new("old".to_owned());
        assert_eq!(look(&mut watch, 1, "old"), None);
        assert_eq!(look(&mut watch, 2, "half of the n"), None);
        assert_eq!(
            look(&mut watch, 2, "half of the new"),
            None,
            "still being written"
        );
        assert_eq!(
            look(&mut watch, 2, "half of the new").as_deref(),
            Some("half of the new")
        );
        assert_eq!(look(&mut watch, 2, "half of the new"), None);
        assert_eq!(
            look(&mut watch, 3, "half of the new"),
            None,
            "moved there, and the same"
        );
    }

    #[test]
    fn a_file_that_did_not_change_is_not_read() {
        let mut watch = FileWatch::new("old".to_owned());
        look(&mut watch, 1, "old");
        assert_eq!(watch.look(&stamp(1)), Next::Wait);
        assert_eq!(
            watch.look(&stamp(2)),
            Next::Read,
            "another was moved to its place"
        );
    }

    #[test]
    fn content_that_comes_and_goes_between_two_looks_changes_nothing() {
        let mut watch = FileWatch::new("old".to_owned());
        assert_eq!(look(&mut watch, 2, "new"), None);
        assert_eq!(look(&mut watch, 3, "old"), None);
        assert_eq!(look(&mut watch, 4, "new"), None);
    }

    #[test]
    fn a_vanished_file_is_complained_of_once_until_it_is_back() {
        let mut watch = FileWatch::new("old".to_owned());
        look(&mut watch, 1, "old");
        assert_eq!([watch.fail(), watch.fail()], [Next::Complain, Next::Wait]);
        assert_eq!(look(&mut watch, 1, "old"), None);
        assert_eq!(watch.fail(), Next::Complain);
    }
}
