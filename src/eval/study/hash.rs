//! SHA-256 of files, each read once.

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Hashes of the files asked for so far.
#[derive(Default)]
pub struct Hashes(HashMap<PathBuf, String>);

impl Hashes {
    /// Hex SHA-256 of the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn file(&mut self, path: &Path) -> Result<String> {
        if let Some(hash) = self.0.get(path) {
            return Ok(hash.clone());
        }
        let io = |source| Error::Io { path: path.into(), source };
        let mut file = File::open(path).map_err(io)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(io)? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        let hash = hex(&hasher.finalize());
        self.0.insert(path.into(), hash.clone());
        Ok(hash)
    }
}

/// Hex SHA-256 of a text.
pub fn text(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digests() {
        // FIPS 180-4, example of one block.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(text("abc"), abc);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "abc").unwrap();
        let mut hashes = Hashes::default();
        assert_eq!(hashes.file(&path).unwrap(), abc);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(hashes.file(&path).unwrap(), abc);
        assert!(hashes.file(&dir.path().join("y")).is_err());
    }
}
