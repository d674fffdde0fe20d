//! Who is who: the federation's own certificate authority, the devices it knows, and the invites
//! that let new ones in.
//!
//! Trust starts with an [`Invite`]: it carries the fingerprint of the authority, so that a device
//! knows the server, and a secret, so that the server lets the device in. From then on both sides
//! show certificates of the one [`Authority`], and nothing else counts.

mod authority;
mod device;
mod invite;

pub use authority::{
    Authority, AuthorityError, DEVICE_VALIDITY, DeviceCertificate, ServerCertificate, kept_secret,
};
pub use device::{Fingerprint, device_of_key};
pub use invite::{Invite, secret_hash};
