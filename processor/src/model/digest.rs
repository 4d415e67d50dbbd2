//! What tells one model from another: the files and settings that decide its answers.

use schemas::Digest;
use sha2::{Digest as _, Sha256};

use super::folder::Files;

/// SHA-256 over the name, the length in bytes (64 bits, little-endian) and the bytes of each file, then over `settings`
/// in the same way. Two folders with the same files have the same digest wherever they are.
pub(super) fn of(files: &Files, settings: &str) -> Digest {
    let mut hasher = Sha256::new();
    for file in files.all() {
        part(&mut hasher, &file.name, &file.bytes);
    }
    part(&mut hasher, "settings", settings.as_bytes());
    Digest::from_bytes(hasher.finalize().into())
}

/// The digest of a model that has no files.
pub(super) fn of_settings(settings: &str) -> Digest {
    let mut hasher = Sha256::new();
    part(&mut hasher, "settings", settings.as_bytes());
    Digest::from_bytes(hasher.finalize().into())
}

fn part(hasher: &mut Sha256, name: &str, bytes: &[u8]) {
    hasher.update(name);
    hasher.update([0]);
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
