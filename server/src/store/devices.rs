//! Invites, devices and their certificates.

use fleetune_core::protocol::{DeviceId, InviteId};
use rusqlite::{OptionalExtension, Row, params};

use super::{Store, StoreError};
use crate::identity::{DeviceCertificate, Fingerprint, Invite};

/// A device as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRecord {
    /// Its name.
    pub id: DeviceId,
    /// The app and its version at enrolment.
    pub app: String,
    /// The federation its invite was for; any where absent.
    pub federation: Option<String>,
    /// When it enrolled, milliseconds since 1970.
    pub enrolled_at: u64,
    /// When its certificate ends, seconds since 1970.
    pub not_after: Option<i64>,
    /// When it was revoked, milliseconds since 1970.
    pub revoked_at: Option<u64>,
}

/// What became of an enrolment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The device is in.
    Admitted,
    /// The invite is unknown, its secret another, its time over or its uses gone.
    NotInvited,
    /// The device is known and revoked.
    Revoked,
}

impl Store {
    /// Keeps an invite.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn add_invite(&self, invite: &Invite) -> Result<(), StoreError> {
        self.write(|db| {
            db.execute(
                "INSERT INTO invites (id, secret_hash, uses_left, expires_at, federation)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    invite.id.0,
                    invite.secret_hash,
                    invite.uses_left,
                    invite.expires_at as i64,
                    invite.federation
                ],
            )?;
            Ok(())
        })
    }

    /// Admits a device by an invite and keeps its certificate. A device that is known by its key
    /// already (its answer got lost) takes no further use of the invite.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn admit(
        &self,
        invite: InviteId,
        secret: &[u8],
        certificate: &DeviceCertificate,
        app: &str,
        now: u64,
    ) -> Result<Admission, StoreError> {
        self.write(|db| {
            let found = db
                .prepare_cached(
                    "SELECT secret_hash, uses_left, expires_at, federation FROM invites
                     WHERE id = ?1",
                )?
                .query_row([invite.0], |row| {
                    Ok(Invite {
                        id: invite,
                        secret_hash: row.get(0)?,
                        uses_left: row.get(1)?,
                        expires_at: row.get::<_, i64>(2)?.max(0) as u64,
                        federation: row.get(3)?,
                    })
                })
                .optional()?;
            let Some(found) = found.filter(|found| found.admits(secret) && found.expires_at > now)
            else {
                return Ok(Admission::NotInvited);
            };
            let device = certificate.device.0;
            let known: Option<Option<i64>> = db
                .prepare_cached("SELECT revoked_at FROM devices WHERE id = ?1")?
                .query_row([device], |row| row.get(0))
                .optional()?;
            match known {
                Some(Some(_)) => return Ok(Admission::Revoked),
                Some(None) => {}
                None if found.uses_left == 0 => return Ok(Admission::NotInvited),
                None => {
                    db.execute(
                        "UPDATE invites SET uses_left = uses_left - 1 WHERE id = ?1",
                        [invite.0],
                    )?;
                    db.execute(
                        "INSERT INTO devices (id, invite, app, federation, enrolled_at)
                         VALUES (?1, ?2, ?3, ?4, ?5)",
                        params![device, invite.0, app, found.federation, now as i64],
                    )?;
                }
            }
            insert_certificate(db, certificate)?;
            Ok(Admission::Admitted)
        })
    }

    /// Keeps the fresh certificate of a known device. Older ones stay good until they end: the
    /// answer may get lost.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn renew(&self, certificate: &DeviceCertificate) -> Result<(), StoreError> {
        self.write(|db| insert_certificate(db, certificate))
    }

    /// The device that shows this certificate, unless it is revoked or unknown.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn device_of(&self, certificate: Fingerprint) -> Result<Option<DeviceId>, StoreError> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT device FROM certificates JOIN devices ON devices.id = device
                 WHERE fingerprint = ?1 AND revoked_at IS NULL",
            )?
            .query_row([certificate.0], |row| Ok(DeviceId(row.get(0)?)))
            .optional()
        })
    }

    /// The federation that a device's invite was for.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn federation_of(&self, device: DeviceId) -> Result<Option<String>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT federation FROM devices WHERE id = ?1")?;
            Ok(query.query_row([device.0], |row| row.get(0)).optional()?.flatten())
        })
    }

    /// Revokes a device for good. Whether there is such a device that was not revoked before.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn revoke(&self, device: DeviceId, now: u64) -> Result<bool, StoreError> {
        self.write(|db| {
            let changed = db.execute(
                "UPDATE devices SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL",
                params![device.0, now as i64],
            )?;
            Ok(changed > 0)
        })
    }

    /// All devices, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn devices(&self) -> Result<Vec<DeviceRecord>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare(
                "SELECT id, app, federation, enrolled_at, revoked_at,
                        (SELECT MAX(not_after) FROM certificates WHERE device = devices.id)
                 FROM devices ORDER BY enrolled_at, id",
            )?;
            let rows = query.query_map([], device_record)?;
            rows.collect()
        })
    }

    /// The devices that were revoked.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn revoked(&self) -> Result<Vec<DeviceId>, StoreError> {
        self.read(|db| {
            let mut query =
                db.prepare_cached("SELECT id FROM devices WHERE revoked_at IS NOT NULL")?;
            let rows = query.query_map([], |row| Ok(DeviceId(row.get(0)?)))?;
            rows.collect()
        })
    }
}

fn insert_certificate(
    db: &rusqlite::Transaction<'_>,
    certificate: &DeviceCertificate,
) -> rusqlite::Result<()> {
    db.execute(
        "INSERT INTO certificates (fingerprint, device, not_after) VALUES (?1, ?2, ?3)",
        params![certificate.fingerprint.0, certificate.device.0, certificate.not_after],
    )?;
    Ok(())
}

fn device_record(row: &Row<'_>) -> rusqlite::Result<DeviceRecord> {
    Ok(DeviceRecord {
        id: DeviceId(row.get(0)?),
        app: row.get(1)?,
        federation: row.get(2)?,
        enrolled_at: row.get::<_, i64>(3)?.max(0) as u64,
        revoked_at: row.get::<_, Option<i64>>(4)?.map(|at| at.max(0) as u64),
        not_after: row.get(5)?,
    })
}
