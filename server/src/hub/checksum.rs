//! Checksums by which the hub names the contents of its files.

use std::fmt;
use std::io::{self, Read};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// What a file's bytes must hash to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-256 in lower-case hex, as of large files.
    Sha256(String),
    /// Git's blob id in lower-case hex, as of small ones: SHA-1 of `blob <size>\0` and the bytes.
    GitBlob(String),
}

impl Checksum {
    /// Reads a checksum out of `hex`; `None` where it does not have the length of either kind.
    pub fn parse(hex: &str) -> Option<Self> {
        let hex = hex.to_ascii_lowercase();
        if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        match hex.len() {
            64 => Some(Self::Sha256(hex)),
            40 => Some(Self::GitBlob(hex)),
            _ => None,
        }
    }

    /// The hex digits.
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// Starts to hash a file of `size` bytes.
    pub fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::GitBlob(_) => Hasher::GitBlob(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }

    /// Whether everything that `reader` gives, `size` bytes, hashes to this.
    ///
    /// # Errors
    /// When reading fails.
    pub fn matches(&self, reader: &mut impl Read, size: u64) -> io::Result<bool> {
        let mut hasher = self.hasher(size);
        hasher.read_all(reader)?;
        Ok(hasher.finish() == self.hex())
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "sha256 {hex}"),
            Self::GitBlob(hex) => write!(f, "git blob {hex}"),
        }
    }
}

/// A checksum being computed.
#[derive(Debug, Clone)]
pub enum Hasher {
    /// SHA-256.
    Sha256(Sha256),
    /// Git's blob id; the header is already in.
    GitBlob(Sha1),
}

impl Hasher {
    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::GitBlob(hash) => hash.update(bytes),
        }
    }

    /// Takes in everything that `reader` gives; returns how many bytes that were.
    ///
    /// # Errors
    /// When reading fails.
    pub fn read_all(&mut self, reader: &mut impl Read) -> io::Result<u64> {
        let mut buffer = vec![0; 1 << 16];
        let mut total = 0;
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(total),
                n => {
                    self.update(&buffer[..n]);
                    total += n as u64;
                }
            }
        }
    }

    /// The checksum in lower-case hex.
    pub fn finish(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha256(hash) => hex(&hash.finalize()),
            Self::GitBlob(hash) => hex(&hash.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // `printf hello | git hash-object --stdin` and `printf hello | sha256sum`.
    const BLOB: &str = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0";
    const SHA256: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    #[test]
    fn checksums_agree_with_git_and_sha256sum() {
        for hex in [BLOB, SHA256, &SHA256.to_uppercase()] {
            let checksum = Checksum::parse(hex).unwrap();
            assert!(checksum.matches(&mut &b"hello"[..], 5).unwrap(), "{checksum}");
            assert!(!checksum.matches(&mut &b"hallo"[..], 5).unwrap(), "{checksum}");
        }
    }

    #[test]
    fn other_strings_are_no_checksums() {
        for text in ["", "abc", &"g".repeat(40), &"é".repeat(32)] {
            assert_eq!(Checksum::parse(text), None, "{text}");
        }
    }
}
