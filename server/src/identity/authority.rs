//! The certificate authority: made on first use, or the operator's own.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use fleetune_core::protocol::{DeviceId, SERVER_NAME};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use time::{Duration, OffsetDateTime};

use super::{Fingerprint, device_of_key};

/// The authority's certificate in its folder.
const CERTIFICATE_FILE: &str = "ca.pem";

/// The authority's private key in its folder.
const KEY_FILE: &str = "ca-key.pem";

/// How long a device's certificate lasts. Devices renew theirs when a third is left.
pub const DEVICE_VALIDITY: Duration = Duration::days(90);
const SERVER_VALIDITY: Duration = Duration::days(90);
const AUTHORITY_VALIDITY: Duration = Duration::days(20 * 365);
/// Certificates count from a day before: clocks of devices are not exact.
const CLOCK_TOLERANCE: Duration = Duration::days(1);

/// Why there is no authority, or it does not sign.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// One of the two files is missing.
    #[error(
        "{path} is missing while the authority's other file is there: restore it, or remove both to begin with a new authority, whom no device knows"
    )]
    Half {
        /// The missing file.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{path} {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A device's signing request is not acceptable.
    #[error("the certificate request is not acceptable ({0}): make a new one")]
    Request(String),
    /// Signing failed.
    #[error("cannot make a certificate: {0}")]
    Sign(String),
}

/// The federation's certificate authority.
#[derive(Debug)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// What a server shows, and proves with its key.
#[derive(Debug)]
pub struct ServerCertificate {
    /// Its certificate, then the authority's.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the first.
    pub key: PrivateKeyDer<'static>,
}

/// A certificate issued to a device.
#[derive(Debug, Clone)]
pub struct DeviceCertificate {
    /// The device's name.
    pub device: DeviceId,
    /// The certificate, then the authority's.
    pub chain: Vec<CertificateDer<'static>>,
    /// The hash by which the server knows the certificate.
    pub fingerprint: Fingerprint,
    /// When the device shall ask for the next one, seconds since 1970.
    pub renew_after: i64,
    /// When it ends, seconds since 1970.
    pub not_after: i64,
}

impl Authority {
    /// The authority in `folder`; a new one where there is none.
    ///
    /// # Errors
    /// When its files cannot be read or written, or do not belong together.
    pub fn open(folder: &Path, now: OffsetDateTime) -> Result<Self, AuthorityError> {
        let (certificate, key) = (folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE));
        match (certificate.exists(), key.exists()) {
            (false, false) => Self::create(folder, now)?,
            (true, false) => return Err(AuthorityError::Half { path: key }),
            (false, true) => return Err(AuthorityError::Half { path: certificate }),
            (true, true) => {}
        }
        Self::load(&certificate, &key)
    }

    /// An authority whose certificate and key (PEM) are the operator's own.
    ///
    /// # Errors
    /// When a file cannot be read, is no PEM, the key is not the certificate's, or the certificate
    /// may not sign.
    pub fn load(certificate_path: &Path, key_path: &Path) -> Result<Self, AuthorityError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|source| AuthorityError::Io {
                action: "read",
                path: path.to_owned(),
                source,
            })
        };
        let wrong = |path: &Path, problem: String| AuthorityError::Content {
            path: path.to_owned(),
            problem,
        };
        let certificate = CertificateDer::from_pem_slice(&read(certificate_path)?)
            .map_err(|error| wrong(certificate_path, format!("holds no certificate: {error}")))?;
        let key_text = String::from_utf8(read(key_path)?)
            .map_err(|_| wrong(key_path, "is no PEM file".into()))?;
        let key = KeyPair::from_pem(&key_text)
            .map_err(|error| wrong(key_path, format!("holds no usable private key: {error}")))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| wrong(certificate_path, format!("cannot be read: {error}")))?;
        if !parsed.is_ca() {
            return Err(wrong(certificate_path, "is not the certificate of an authority".into()));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            let problem = format!("is not the key of {}", certificate_path.display());
            return Err(wrong(key_path, problem));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| wrong(certificate_path, format!("cannot sign: {error}")))?;
        Ok(Self { certificate, issuer })
    }

    fn create(folder: &Path, now: OffsetDateTime) -> Result<(), AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "fleetune certificate authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = now - CLOCK_TOLERANCE;
        params.not_after = now + AUTHORITY_VALIDITY;
        let key = KeyPair::generate().map_err(sign_error)?;
        let certificate = params.self_signed(&key).map_err(sign_error)?;
        fs::create_dir_all(folder).map_err(|source| AuthorityError::Io {
            action: "make",
            path: folder.to_owned(),
            source,
        })?;
        // The key first: a certificate without its key would be a lost authority.
        write_private(&folder.join(KEY_FILE), key.serialize_pem().as_bytes())?;
        write_private(&folder.join(CERTIFICATE_FILE), certificate.pem().as_bytes())
    }

    /// The authority's certificate in DER, the one root that devices trust.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The hash that join codes carry.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// A new key and certificate for the server, good for [`SERVER_NAME`] and for `hosts`.
    ///
    /// # Errors
    /// When a host is neither a name nor an address.
    pub fn issue_server(
        &self,
        hosts: &[String],
        now: OffsetDateTime,
    ) -> Result<ServerCertificate, AuthorityError> {
        let mut params = leaf_params(SERVER_NAME, now, SERVER_VALIDITY);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in std::iter::once(SERVER_NAME).chain(hosts.iter().map(String::as_str)) {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.try_into().map_err(sign_error)?),
            });
        }
        let key = KeyPair::generate().map_err(sign_error)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(sign_error)?;
        Ok(ServerCertificate {
            chain: vec![certificate.der().clone(), self.certificate.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    /// A certificate for the device that sent `request` (PKCS#10, DER): a new device named by its key,
    /// or `device` where it is known already. Of the request only the key counts, of which it proves
    /// possession; what else it wishes for is the server's to say.
    ///
    /// # Errors
    /// When the request is malformed or its signature is wrong.
    pub fn issue_device(
        &self,
        request: &[u8],
        device: Option<DeviceId>,
        now: OffsetDateTime,
    ) -> Result<DeviceCertificate, AuthorityError> {
        let request = CertificateSigningRequestDer::from(request);
        let request = CertificateSigningRequestParams::from_der(&request)
            .map_err(|error| AuthorityError::Request(error.to_string()))?;
        let public_key = request.public_key.subject_public_key_info();
        let device = device.unwrap_or_else(|| device_of_key(&public_key));
        let mut params = leaf_params(&device.to_string(), now, DEVICE_VALIDITY);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let name = format!("{device}.device.fleetune");
        params.subject_alt_names =
            vec![SanType::DnsName(name.as_str().try_into().map_err(sign_error)?)];
        let not_after = params.not_after.unix_timestamp();
        let certificate =
            params.signed_by(&request.public_key, &self.issuer).map_err(sign_error)?;
        Ok(DeviceCertificate {
            device,
            fingerprint: Fingerprint::of(certificate.der()),
            chain: vec![certificate.der().clone(), self.certificate.clone()],
            renew_after: not_after - DEVICE_VALIDITY.whole_seconds() / 3,
            not_after,
        })
    }
}

fn leaf_params(name: &str, now: OffsetDateTime, validity: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now - CLOCK_TOLERANCE;
    params.not_after = now + validity;
    params
}

fn sign_error(error: rcgen::Error) -> AuthorityError {
    AuthorityError::Sign(error.to_string())
}

/// A secret that stays the same over restarts: the file `name` in `folder`, with `fresh` on first use.
/// Readable by its owner alone.
///
/// # Errors
/// When it cannot be read or written.
pub fn kept_secret<const N: usize>(
    folder: &Path,
    name: &str,
    fresh: [u8; N],
) -> Result<Vec<u8>, AuthorityError> {
    let path = folder.join(name);
    match fs::read(&path) {
        Ok(secret) if secret.len() == N => Ok(secret),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(AuthorityError::Io { action: "read", path, source: error })
        }
        // One that was cut short is as good as none.
        _ => {
            fs::create_dir_all(folder).map_err(|source| AuthorityError::Io {
                action: "make",
                path: folder.to_owned(),
                source,
            })?;
            write_private(&path, &fresh)?;
            Ok(fresh.to_vec())
        }
    }
}

/// Writes a file that only its owner may read, whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), AuthorityError> {
    let write = || -> io::Result<()> {
        // tempfile makes files that only their owner may read.
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(|source| AuthorityError::Io { action: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::days(20_000)
    }

    fn request(key: &KeyPair) -> Vec<u8> {
        CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn an_authority_is_made_once_and_its_key_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = Authority::open(folder.path(), now()).unwrap();
        let again = Authority::open(folder.path(), now() + Duration::days(1)).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(folder.path().join(KEY_FILE)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        fs::remove_file(folder.path().join(KEY_FILE)).unwrap();
        let half = Authority::open(folder.path(), now());
        assert!(matches!(half, Err(AuthorityError::Half { .. })));
    }

    #[test]
    fn a_key_of_another_authority_is_refused() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Authority::open(a.path(), now()).unwrap();
        Authority::open(b.path(), now()).unwrap();
        let error = Authority::load(&a.path().join(CERTIFICATE_FILE), &b.path().join(KEY_FILE));
        assert!(error.unwrap_err().to_string().contains("is not the key of"));
    }

    #[test]
    fn a_device_is_named_by_its_first_key_and_keeps_the_name_when_it_renews() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path(), now()).unwrap();
        let (first, second) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let enrolled = authority.issue_device(&request(&first), None, now()).unwrap();
        let again = authority.issue_device(&request(&first), None, now()).unwrap();
        assert_eq!(enrolled.device, again.device);
        assert_ne!(enrolled.fingerprint, again.fingerprint, "serial numbers differ");
        let renewed =
            authority.issue_device(&request(&second), Some(enrolled.device), now()).unwrap();
        assert_eq!(renewed.device, enrolled.device);
        let other = authority.issue_device(&request(&second), None, now()).unwrap();
        assert_ne!(other.device, enrolled.device);
    }

    #[test]
    fn what_a_request_wishes_for_is_not_granted() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path(), now()).unwrap();
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let request = params.serialize_request(&key).unwrap().der().to_vec();
        let issued = authority.issue_device(&request, None, now()).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
        assert!(!parsed.is_ca());
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);
        let text = format!("{:?}", parsed.subject_alternative_name().unwrap());
        assert!(!text.contains(SERVER_NAME), "{text}");
    }

    #[test]
    fn a_request_that_is_damaged_or_not_signed_by_its_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path(), now()).unwrap();
        let mut bytes = request(&KeyPair::generate().unwrap());
        for wrong in [&b""[..], b"\x30\x00", &bytes[..bytes.len() - 1]] {
            let refused = authority.issue_device(wrong, None, now());
            assert!(matches!(refused, Err(AuthorityError::Request(_))));
        }
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let refused = authority.issue_device(&bytes, None, now());
        assert!(matches!(refused, Err(AuthorityError::Request(_))));
    }
}
