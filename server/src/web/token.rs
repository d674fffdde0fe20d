//! The operator's token: who has it may see and order everything on the page.

use std::fmt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::coordinator::random;
use crate::identity::kept_secret;
use crate::operator::{OperatorError, identity_folder};

const FILE: &str = "operator-token";

/// A secret that stays the same over restarts.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The token in a state folder, made on first use; readable by its owner alone.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn open(state: &Path) -> Result<Self, OperatorError> {
        let fresh: [u8; 16] = random()?;
        let secret = kept_secret(&identity_folder(state), FILE, fresh)?;
        Ok(Self(data_encoding::HEXLOWER.encode(&secret)))
    }

    /// Whether `said` is the token. Hashes are compared, so that the time tells nothing.
    pub fn admits(&self, said: &str) -> bool {
        Sha256::digest(said) == Sha256::digest(&self.0)
    }

    /// As it stands in the page's address.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_stays_over_restarts_and_admits_itself_alone() {
        let folder = tempfile::tempdir().unwrap();
        let token = Token::open(folder.path()).unwrap();
        assert_eq!(Token::open(folder.path()).unwrap(), token);
        assert!(token.admits(token.as_str()));
        for wrong in ["", &token.as_str()[1..], &token.as_str().to_uppercase()] {
            assert!(!token.admits(wrong), "{wrong:?}");
        }
        assert!(!format!("{token:?}").contains(token.as_str()));
    }
}
