//! The server's middle: rounds on one side, the disk on the other, devices' requests in between.
//!
//! A [`Coordinator`] answers what devices ask, one function a request, without a socket in sight; the
//! transport calls it from as many threads as it likes. Each federation has a driver, a thread that
//! keeps its deadlines, closes its rounds and carries out the operator's orders; one with suites of
//! questions has a second thread that asks them.

mod clock;
mod close;
pub mod config;
mod drive;
mod eligibility;
mod error;
mod evaluate;
mod federation;
mod metrics;
mod offers;
mod start;
mod upload;

use std::collections::BTreeMap;
use std::sync::Arc;

use fleetune_core::protocol::{Assignment, CheckIn, DeviceId, EnrolRequest, Enrolment, Response};

pub use clock::Clock;
pub use close::RoundSummary;
pub use error::{FederationError, RequestError};
pub use evaluate::{Evaluate, Measures};
pub use federation::{BaseModel, Federation, random};
pub use metrics::Metrics;
pub use offers::{Content, Offered, Offers};

use crate::identity::{Authority, DeviceCertificate, Fingerprint};
use crate::store::{Admission, Incoming, Store, StoreError};
use config::{FederationConfig, Limits};

/// Everything a server does for devices.
#[derive(Debug)]
pub struct Coordinator {
    store: Store,
    incoming: Incoming,
    authority: Authority,
    limits: Limits,
    clock: Clock,
    offers: Offers,
    metrics: Metrics,
    federations: BTreeMap<String, Arc<Federation>>,
}

impl Coordinator {
    /// A server's state without federations yet.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn new(store: Store, authority: Authority, limits: Limits) -> Result<Self, StoreError> {
        store.sweep()?;
        Ok(Self {
            incoming: store.incoming()?,
            store,
            authority,
            limits,
            clock: Clock::start(),
            offers: Offers::default(),
            metrics: Metrics::default(),
            federations: BTreeMap::new(),
        })
    }

    /// Takes up a federation, or begins it.
    ///
    /// # Errors
    /// When its settings contradict those it began with, or what it left is damaged.
    pub fn serve(
        &mut self,
        config: FederationConfig,
        model: BaseModel,
        measures: Measures,
    ) -> Result<(), FederationError> {
        let (store, offers, now) = (&self.store, &self.offers, self.clock.now());
        let federation = Federation::open(config, model, measures, store, offers, now)?;
        self.federations.insert(federation.name().to_owned(), Arc::new(federation));
        Ok(())
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The certificate authority.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What devices may take up.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What devices may fetch.
    pub fn offers(&self) -> &Offers {
        &self.offers
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// All federations, by name.
    pub fn federations(&self) -> impl Iterator<Item = &Arc<Federation>> {
        self.federations.values()
    }

    fn federation(&self, name: &str) -> Option<Arc<Federation>> {
        self.federations.get(name).cloned()
    }

    /// The device that shows this certificate.
    ///
    /// # Errors
    /// When it was revoked or is nobody's, or the store fails.
    pub fn device(&self, certificate: Fingerprint) -> Result<DeviceId, RequestError> {
        self.store.device_of(certificate)?.ok_or(RequestError::Revoked)
    }

    /// Admits a device that was invited.
    ///
    /// # Errors
    /// When it was not, or its request is malformed.
    pub fn enrol(&self, request: &EnrolRequest) -> Result<Response, RequestError> {
        let certificate = self.authority.issue_device(&request.csr, None, self.clock.date())?;
        let now = self.clock.now();
        let admission =
            self.store.admit(request.invite, &request.secret, &certificate, &request.app, now)?;
        match admission {
            Admission::Admitted => {
                let device = certificate.device.to_string();
                tracing::info!(device, app = request.app, "device enrolled");
                Ok(enrolled(&certificate))
            }
            Admission::NotInvited => Err(RequestError::NotInvited),
            Admission::Revoked => Err(RequestError::Revoked),
        }
    }

    /// Gives a device a fresh certificate.
    ///
    /// # Errors
    /// When its request is malformed.
    pub fn renew(&self, device: DeviceId, request: &[u8]) -> Result<Response, RequestError> {
        let certificate = self.authority.issue_device(request, Some(device), self.clock.date())?;
        self.store.renew(&certificate)?;
        Ok(enrolled(&certificate))
    }

    /// What a device that asks for work is to do: the first federation that has work for it decides.
    ///
    /// # Errors
    /// When it asks for a federation that it may not serve, or the store fails.
    pub fn check_in(&self, device: DeviceId, request: &CheckIn) -> Result<Response, RequestError> {
        let bound = self.store.federation_of(device)?;
        let admits = |name: &str| {
            let wished = request.federation.as_deref().is_none_or(|wish| wish == name);
            wished && bound.as_deref().is_none_or(|bound| bound == name)
        };
        let mut answer = None;
        for federation in self.federations.values().filter(|f| admits(f.name())) {
            let now = self.clock.now();
            let said = federation.check_in(device, &request.capabilities, &self.store, now)?;
            if let Assignment::Round(_) = said {
                return Ok(Response::Assignment(said));
            }
            // A federation that may have work later counts more than one that is done, and waiting
            // for work more than not being fit for it.
            let rank = |said: &Assignment| match said {
                Assignment::Finished(_) => 0,
                Assignment::Ineligible { .. } => 1,
                Assignment::Wait { .. } | Assignment::Round(_) => 2,
            };
            if answer.as_ref().is_none_or(|known| rank(&said) > rank(known)) {
                answer = Some(said);
            }
        }
        let answer = answer.ok_or(RequestError::Unknown("federation"))?;
        Ok(Response::Assignment(answer))
    }

    /// A device leaves for good.
    ///
    /// # Errors
    /// When the store fails.
    pub fn leave(&self, device: DeviceId) -> Result<Response, RequestError> {
        self.store.revoke(device, self.clock.now())?;
        tracing::info!(device = %device, "device left");
        Ok(Response::Left)
    }

    /// A device's connection is gone: what is in memory of its upload may go, the disk remembers.
    pub fn disconnected(&self, device: DeviceId) {
        self.incoming.forget(device);
    }
}

fn enrolled(certificate: &DeviceCertificate) -> Response {
    let chain = certificate.chain.iter().map(|der| der.to_vec()).collect();
    Response::Enrolled(Enrolment {
        device: certificate.device,
        chain,
        renew_after: certificate.renew_after.max(0) as u64,
        not_after: certificate.not_after.max(0) as u64,
    })
}
