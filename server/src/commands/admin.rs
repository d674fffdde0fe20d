//! `fleetune admin`: the operator's commands.
//!
//! They work on the state folder, whether the server runs or not. A running server sees a new invite
//! and a revocation with the next request, an order within a second.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use fleetune_core::protocol::{DeviceId, InviteId, JoinCode};
use serde::Serialize;
use serde_json::json;

use super::serve::{ADDRESSES_NOTE, AUTHORITY_NOTE, identity_folder};
use super::values::at_least_one;
use super::{CommandError, CommandResult, Context};
use crate::coordinator::{Clock, RoundSummary, random};
use crate::duration::Span;
use crate::identity::{Authority, Invite, secret_hash};
use crate::simulate::journal::EvaluationRecord;
use crate::store::{FederationRow, OrderKind, Outcome, Status, Store};

/// What `fleetune admin` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fleetune admin invite --uses 100 --expires 7d
  fleetune admin status
  fleetune admin rollback notes --round 12")]
pub struct AdminArgs {
    /// The server's state folder
    #[arg(long, global = true, value_name = "DIR", default_value = "fleetune-server")]
    state: PathBuf,
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// Print a join code for new devices
    #[command(after_help = "Example:\n  fleetune admin invite --uses 100 --expires 7d")]
    Invite(InviteArgs),
    /// List the devices
    #[command(after_help = "Example:\n  fleetune admin devices")]
    Devices,
    /// Shut a device out for good
    #[command(after_help = "Example:\n  fleetune admin revoke 0123456789abcdef0123456789abcdef")]
    Revoke {
        /// The device's name, as `fleetune admin devices` shows it
        #[arg(value_name = "DEVICE")]
        id: DeviceId,
    },
    /// Show where the federations stand
    #[command(after_help = "Example:\n  fleetune admin status")]
    Status,
    /// Show what the rounds of a federation did
    #[command(after_help = "Example:\n  fleetune admin rounds notes")]
    Rounds {
        /// The federation
        federation: String,
    },
    /// Select no more devices; a round that runs comes to its end
    #[command(after_help = "Example:\n  fleetune admin pause notes")]
    Pause {
        /// The federation
        federation: String,
    },
    /// Go on after a pause
    #[command(after_help = "Example:\n  fleetune admin resume notes")]
    Resume {
        /// The federation
        federation: String,
    },
    /// Go back to the adapter after an earlier round, and on from there
    #[command(after_help = "Example:\n  fleetune admin rollback notes --round 12")]
    Rollback {
        /// The federation
        federation: String,
        /// The round, 0 for the beginning
        #[arg(long, value_name = "N")]
        round: u32,
    },
}

#[derive(Debug, Args)]
struct InviteArgs {
    /// Devices that may join with the code
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one)]
    uses: usize,
    /// How long the code is good, such as 12h or 7d
    #[arg(long, value_name = "TIME", default_value = "7d")]
    expires: Span,
    /// The federation that the devices shall serve [default: any]
    #[arg(long, value_name = "NAME")]
    federation: Option<String>,
    /// Where devices reach the server [default: as it was started with]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    address: Vec<String>,
}

/// Runs the command.
pub fn run(args: AdminArgs, ctx: &Context) -> CommandResult {
    let state = &args.state;
    if !state.is_dir() {
        return Err(CommandError::Usage(format!(
            "{} is no state folder: start `fleetune serve`, or name its folder with --state",
            state.display()
        )));
    }
    let store = Store::open(state)?;
    match args.command {
        AdminCommand::Invite(args) => invite(&store, state, args, ctx),
        AdminCommand::Devices => devices(&store, ctx),
        AdminCommand::Revoke { id } => revoke(&store, id, ctx),
        AdminCommand::Status => status(&store, ctx),
        AdminCommand::Rounds { federation } => rounds(&store, &federation, ctx),
        AdminCommand::Pause { federation } => order(&store, &federation, OrderKind::Pause, ctx),
        AdminCommand::Resume { federation } => order(&store, &federation, OrderKind::Resume, ctx),
        AdminCommand::Rollback { federation, round } => {
            let row = known(&store, &federation)?;
            if round >= row.round || store.round(&federation, row.epoch, round)?.is_none() {
                return Err(CommandError::Usage(format!(
                    "round {round} of {federation} is not kept: `fleetune admin rounds \
                     {federation}` lists those that are"
                )));
            }
            order(&store, &federation, OrderKind::Rollback { round }, ctx)
        }
    }
}

fn invite(store: &Store, state: &Path, args: InviteArgs, ctx: &Context) -> CommandResult {
    if let Some(federation) = &args.federation {
        known(store, federation)?;
    }
    let addresses = match args.address.is_empty() {
        false => args.address,
        true => {
            let noted = store.note(ADDRESSES_NOTE)?.ok_or_else(|| {
                CommandError::Usage(
                    "where is the server? Start it once, or name its address with --address \
                     host:port"
                        .into(),
                )
            })?;
            noted.split(',').map(str::to_owned).collect()
        }
    };
    let authority = match store.note(AUTHORITY_NOTE)? {
        Some(fingerprint) => data_encoding::HEXLOWER
            .decode(fingerprint.as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| {
                anyhow::anyhow!("the state folder's note of its authority is damaged")
            })?,
        None => Authority::open(&identity_folder(state), Clock::start().date())?.fingerprint().0,
    };
    let (id, secret): (InviteId, [u8; 16]) = (InviteId(random()?), random()?);
    let code = JoinCode { addresses, authority, invite: id, secret, federation: args.federation };
    let text = code.to_string();
    // What devices will not read is not given to them.
    text.parse::<JoinCode>().map_err(CommandError::usage)?;
    store.add_invite(&Invite {
        id,
        secret_hash: secret_hash(&id, &secret),
        uses_left: u32::try_from(args.uses).unwrap_or(u32::MAX),
        expires_at: Clock::start().now() + args.expires.as_millis(),
        federation: code.federation,
    })?;
    Ok(ctx.result(&json!({ "join_code": text }), || text.clone())?)
}

fn devices(store: &Store, ctx: &Context) -> CommandResult {
    let devices = store.devices()?;
    let list: Vec<_> = devices
        .iter()
        .map(|device| {
            json!({
                "id": device.id.to_string(),
                "app": device.app,
                "federation": device.federation,
                "enrolled_at": date(device.enrolled_at),
                "certificate_until": device.not_after.map(|at| date(at.max(0) as u64 * 1000)),
                "revoked_at": device.revoked_at.map(date),
            })
        })
        .collect();
    Ok(ctx.result(&list, || {
        let line = |device: &crate::store::DeviceRecord| {
            let state = match (device.revoked_at, device.not_after) {
                (Some(at), _) => format!("revoked {}", date(at)),
                (None, Some(at)) => format!("certificate until {}", date(at.max(0) as u64 * 1000)),
                (None, None) => "without certificate".into(),
            };
            let federation = device.federation.as_deref().unwrap_or("any federation");
            format!("{}  {}  {federation}  {state}", device.id, device.app)
        };
        match devices.len() {
            0 => "no device has joined yet".into(),
            _ => devices.iter().map(line).collect::<Vec<_>>().join("\n"),
        }
    })?)
}

fn revoke(store: &Store, device: DeviceId, ctx: &Context) -> CommandResult {
    if !store.revoke(device, Clock::start().now())? {
        return Err(CommandError::Usage(format!(
            "there is no device {device} that could be revoked: see `fleetune admin devices`"
        )));
    }
    Ok(ctx.result(&json!({ "revoked": device.to_string() }), || format!("{device} is revoked"))?)
}

/// Where a federation stands.
#[derive(Debug, Serialize)]
struct Standing {
    name: String,
    status: Status,
    reason: Option<String>,
    round: u32,
    training: usize,
    updates: usize,
    loss: Option<f64>,
    evaluation_loss: Option<f64>,
}

fn status(store: &Store, ctx: &Context) -> CommandResult {
    let standing = |row: FederationRow| -> Result<Standing, CommandError> {
        let members = store.members_since(&row.name, row.epoch, row.round)?;
        let last = store.round(&row.name, row.epoch, row.round - 1)?;
        let summary: RoundSummary =
            last.and_then(|last| serde_json::from_str(&last.summary).ok()).unwrap_or_default();
        let found = store.evaluations(&row.name, row.epoch)?.pop();
        let found: Option<EvaluationRecord> =
            found.and_then(|found| serde_json::from_str(&found.found).ok());
        Ok(Standing {
            training: members.iter().filter(|m| m.outcome == Outcome::Training).count(),
            updates: store.counting(&row.name, row.epoch, row.round)?.len(),
            name: row.name,
            status: row.status,
            reason: row.reason,
            round: row.round,
            loss: summary.loss,
            evaluation_loss: found.map(|found| found.score.loss),
        })
    };
    let all = store.federations()?.into_iter().map(standing).collect::<Result<Vec<_>, _>>()?;
    Ok(ctx.result(&all, || {
        let line = |it: &Standing| {
            let state = match (it.status, &it.reason) {
                (Status::Running, _) => format!(
                    "round {}: {} training, {} updates in",
                    it.round, it.training, it.updates
                ),
                (Status::Paused, _) => format!("paused in round {}", it.round),
                (Status::Finished, reason) => {
                    format!("finished: {}", reason.as_deref().unwrap_or("all rounds are done"))
                }
            };
            let loss = it.loss.map(|loss| format!("; training loss {loss:.4}"));
            let held_out = it.evaluation_loss.map(|loss| format!("; held-out loss {loss:.4}"));
            let (loss, held_out) = (loss.unwrap_or_default(), held_out.unwrap_or_default());
            format!("{}: {state}{loss}{held_out}", it.name)
        };
        match all.len() {
            0 => "no federation has begun yet".into(),
            _ => all.iter().map(line).collect::<Vec<_>>().join("\n"),
        }
    })?)
}

fn rounds(store: &Store, federation: &str, ctx: &Context) -> CommandResult {
    let row = known(store, federation)?;
    let rows = store.rounds(federation, row.epoch)?;
    let list: Vec<(u32, RoundSummary, u64)> = rows
        .iter()
        .map(|row| {
            (row.round, serde_json::from_str(&row.summary).unwrap_or_default(), row.closed_at)
        })
        .collect();
    let value: Vec<_> = list
        .iter()
        .map(|(round, summary, at)| json!({ "round": round, "closed_at": date(*at), "summary": summary }))
        .collect();
    Ok(ctx.result(&value, || {
        let line = |(round, summary, at): &(u32, RoundSummary, u64)| {
            let loss = summary.loss.map_or("-".into(), |loss| format!("{loss:.4}"));
            format!("{round:>5}  {}  {:>5} updates  loss {loss}", date(*at), summary.updates)
        };
        list.iter().map(line).collect::<Vec<_>>().join("\n")
    })?)
}

fn order(store: &Store, federation: &str, kind: OrderKind, ctx: &Context) -> CommandResult {
    known(store, federation)?;
    store.order(federation, kind)?;
    let text = "ordered: the server carries it out as soon as it runs";
    Ok(ctx.result(&json!({ "federation": federation, "ordered": true }), || text.into())?)
}

fn known(store: &Store, federation: &str) -> Result<FederationRow, CommandError> {
    store.federation(federation)?.ok_or_else(|| {
        CommandError::Usage(format!(
            "no federation named {federation} has begun here: see `fleetune admin status`"
        ))
    })
}

/// A moment as `2026-01-31T12:00:00Z`.
fn date(milliseconds: u64) -> String {
    let seconds = i64::try_from(milliseconds / 1000).unwrap_or(i64::MAX);
    let moment = time::OffsetDateTime::from_unix_timestamp(seconds)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, (hour, minute, second)) = (moment.date(), moment.time().as_hms());
    format!("{date}T{hour:02}:{minute:02}:{second:02}Z")
}
