//! Who a device is: its key, which it makes itself and which never leaves it, and the certificate
//! that the server's authority signed for it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use rcgen::{CertificateParams, KeyPair};
use serde::{Deserialize, Serialize};

use crate::files::write_atomically;
use crate::protocol::{DeviceId, Enrolment, JoinCode};

/// Where a device's private key is kept. Apps put the platform's key store behind it; what is
/// stored must come back as it was, and nobody else may read it.
pub trait KeyStore: Send + Sync {
    /// The key that was stored, PKCS#8 DER; `None` where none was.
    ///
    /// # Errors
    /// When the store cannot be read, or others could.
    fn load(&self) -> io::Result<Option<Vec<u8>>>;

    /// Keeps a key, PKCS#8 DER.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn store(&self, key: &[u8]) -> io::Result<()>;
}

/// A key in a file that only its owner may read.
#[derive(Debug, Clone)]
pub struct FileKeyStore {
    path: PathBuf,
}

/// Longer than any key of ours.
const MAX_KEY: u64 = 16 << 10;

impl FileKeyStore {
    /// The file at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl KeyStore for FileKeyStore {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        check_owner_only(&file)?;
        let mut key = Vec::new();
        file.take(MAX_KEY).read_to_end(&mut key)?;
        Ok(Some(key))
    }

    fn store(&self, key: &[u8]) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        // A leftover of a killed process may have other rights.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&temporary)?;
        file.write_all(key)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)
    }
}

#[cfg(unix)]
fn check_owner_only(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    match file.metadata()?.permissions().mode() & 0o077 {
        0 => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "others than the owner may read the private key: chmod 600 it, or enrol anew if it \
             may have been read",
        )),
    }
}

#[cfg(not(unix))]
fn check_owner_only(_file: &File) -> io::Result<()> {
    Ok(())
}

/// Why a device has no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The key store fails.
    #[error("cannot use the private key: {0}")]
    Key(#[source] io::Error),
    /// The key store holds no key, or a damaged one.
    #[error("the private key is missing or damaged ({0}): enrol with a new join code and folder")]
    BadKey(String),
    /// The file with the certificate cannot be read or written.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file with the certificate is damaged.
    #[error("{path} is damaged ({problem}): enrol with a new join code and folder")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// The device's private key.
pub(super) struct DeviceKey(KeyPair);

impl DeviceKey {
    /// The key of the store; a new one, stored before it is used, where there is none.
    pub(super) fn load_or_make(store: &dyn KeyStore) -> Result<Self, IdentityError> {
        if let Some(key) = Self::load(store)? {
            return Ok(key);
        }
        let key = KeyPair::generate().map_err(bad_key)?;
        store.store(&key.serialize_der()).map_err(IdentityError::Key)?;
        Ok(Self(key))
    }

    /// The key of the store, if it holds one.
    pub(super) fn load(store: &dyn KeyStore) -> Result<Option<Self>, IdentityError> {
        let key = store.load().map_err(IdentityError::Key)?;
        let key = key.map(|key| KeyPair::try_from(key.as_slice())).transpose();
        Ok(key.map_err(bad_key)?.map(Self))
    }

    /// PKCS#8 DER.
    pub(super) fn pkcs8(&self) -> Vec<u8> {
        self.0.serialize_der()
    }

    /// A certificate signing request, DER. It names nobody: the server does.
    pub(super) fn signing_request(&self) -> Result<Vec<u8>, IdentityError> {
        let request = CertificateParams::default().serialize_request(&self.0).map_err(bad_key)?;
        Ok(request.der().to_vec())
    }
}

fn bad_key(error: rcgen::Error) -> IdentityError {
    IdentityError::BadKey(error.to_string())
}

/// What the server made of the device: name and certificate, and where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name and certificates.
    pub enrolment: Enrolment,
    /// Where the server listens, `host:port`.
    pub addresses: Vec<String>,
    /// The federation to serve; any where absent.
    pub federation: Option<String>,
}

/// [`Identity`] as its file has it.
#[derive(Serialize, Deserialize)]
struct IdentityFile {
    device: String,
    addresses: Vec<String>,
    federation: Option<String>,
    renew_after: u64,
    not_after: u64,
    certificate: String,
    authority: String,
}

impl Identity {
    /// The identity that `enrolment` with `code` gives.
    pub(super) fn new(code: &JoinCode, enrolment: Enrolment) -> Self {
        let JoinCode { addresses, federation, .. } = code.clone();
        Self { enrolment, addresses, federation }
    }

    /// The device's name.
    pub fn device(&self) -> DeviceId {
        self.enrolment.device
    }

    /// Reads the file that [`Identity::save`] wrote; `None` where there is none.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|source| IdentityError::File { path: path.to_owned(), source })?,
        };
        let damaged = |problem: String| IdentityError::Damaged { path: path.to_owned(), problem };
        let file: IdentityFile =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        let certificates = [&file.certificate, &file.authority].map(|certificate| {
            let der = BASE64.decode(certificate.as_bytes());
            der.map_err(|_| damaged("a certificate is no base64".into()))
        });
        let [own, authority] = certificates;
        let device = file.device.parse().map_err(|_| damaged("the device's id is none".into()))?;
        let IdentityFile { addresses, federation, renew_after, not_after, .. } = file;
        let chain = vec![own?, authority?];
        let enrolment = Enrolment { device, chain, renew_after, not_after };
        Ok(Some(Self { enrolment, addresses, federation }))
    }

    /// Writes the identity to a file, wholly or not at all.
    ///
    /// # Errors
    /// When the file cannot be written, or the chain is not two certificates.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        let Enrolment { device, chain, renew_after, not_after } = &self.enrolment;
        let [certificate, authority] = chain.as_slice() else {
            let problem = "the chain is not the device's certificate and the authority's".into();
            return Err(IdentityError::Damaged { path: path.to_owned(), problem });
        };
        let file = IdentityFile {
            device: device.to_string(),
            addresses: self.addresses.clone(),
            federation: self.federation.clone(),
            renew_after: *renew_after,
            not_after: *not_after,
            certificate: BASE64.encode(certificate),
            authority: BASE64.encode(authority),
        };
        let failed = |source| IdentityError::File { path: path.to_owned(), source };
        let text = serde_json::to_vec_pretty(&file).map_err(|error| failed(error.into()))?;
        write_atomically(path, &text).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.key");
        let store = FileKeyStore::new(&path);
        let key = DeviceKey::load_or_make(&store).unwrap();
        assert_eq!(DeviceKey::load_or_make(&store).unwrap().pkcs8(), key.pkcs8());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            assert!(matches!(DeviceKey::load(&store), Err(IdentityError::Key(_))));
        }
    }

    #[test]
    fn a_damaged_key_is_an_error_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileKeyStore::new(folder.path().join("device.key"));
        store.store(b"rubbish").unwrap();
        assert!(matches!(DeviceKey::load_or_make(&store), Err(IdentityError::BadKey(_))));
        assert_eq!(store.load().unwrap().unwrap(), b"rubbish");
    }

    #[test]
    fn an_identity_reads_back_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.json");
        assert_eq!(Identity::load(&path).unwrap(), None);
        let identity = Identity {
            enrolment: Enrolment {
                device: DeviceId([5; 16]),
                chain: vec![vec![1, 2, 3], vec![4]],
                renew_after: 10,
                not_after: 20,
            },
            addresses: vec!["localhost:4433".into()],
            federation: None,
        };
        identity.save(&path).unwrap();
        assert_eq!(Identity::load(&path).unwrap(), Some(identity));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::Damaged { .. })));
    }
}
