//! `fleetune admin`: the operator's commands.
//!
//! They work on the state folder, whether the server runs or not. A running server sees a new invite
//! and a revocation with the next request, an order within a second.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use fleetune_core::protocol::DeviceId;
use serde_json::json;

use super::values::at_least_one;
use super::{CommandError, CommandResult, Context};
use crate::coordinator::RoundSummary;
use crate::duration::Span;
use crate::operator::{
    InviteTerms, Standing, SuiteScore, date, invite, order, revoke, standings, summaries,
};
use crate::store::{OrderKind, Status, Store, SummaryRow};

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
        AdminCommand::Invite(args) => new_code(&store, args, ctx),
        AdminCommand::Devices => devices(&store, ctx),
        AdminCommand::Revoke { id } => {
            revoke(&store, id)?;
            Ok(ctx.result(&json!({ "revoked": id.to_string() }), || format!("{id} is revoked"))?)
        }
        AdminCommand::Status => status(&store, ctx),
        AdminCommand::Rounds { federation } => rounds(&store, &federation, ctx),
        AdminCommand::Pause { federation } => ordered(&store, &federation, OrderKind::Pause, ctx),
        AdminCommand::Resume { federation } => ordered(&store, &federation, OrderKind::Resume, ctx),
        AdminCommand::Rollback { federation, round } => {
            ordered(&store, &federation, OrderKind::Rollback { round }, ctx)
        }
    }
}

fn new_code(store: &Store, args: InviteArgs, ctx: &Context) -> CommandResult {
    let InviteArgs { uses, expires, federation, address: addresses } = args;
    let uses = u32::try_from(uses).unwrap_or(u32::MAX);
    let code = invite(store, InviteTerms { uses, expires, federation, addresses })?.to_string();
    Ok(ctx.result(&json!({ "join_code": code }), || code.clone())?)
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

fn status(store: &Store, ctx: &Context) -> CommandResult {
    let all = standings(store)?;
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
            let suites = it.suites.iter().map(|score| {
                let SuiteScore { round, suite, metric, value, .. } = score;
                let error = score.standard_error.map(|error| format!(" ± {error:.4}"));
                let error = error.unwrap_or_default();
                format!("\n  {suite} after round {round}: {metric} {value:.4}{error}")
            });
            format!("{}: {state}{loss}{held_out}{}", it.name, suites.collect::<String>())
        };
        match all.len() {
            0 => "no federation has begun yet".into(),
            _ => all.iter().map(line).collect::<Vec<_>>().join("\n"),
        }
    })?)
}

fn rounds(store: &Store, federation: &str, ctx: &Context) -> CommandResult {
    let list = summaries(store, federation)?;
    let told = |(row, did): &(SummaryRow, RoundSummary)| {
        let closed_at = date(row.closed_at);
        json!({ "round": row.round, "closed_at": closed_at, "kept": row.kept, "summary": did })
    };
    let value: Vec<_> = list.iter().map(told).collect();
    Ok(ctx.result(&value, || {
        let line = |(row, did): &(SummaryRow, RoundSummary)| {
            let loss = did.loss.map_or("-".into(), |loss| format!("{loss:.4}"));
            let kept = if row.kept { "" } else { "  (adapter pruned)" };
            let (round, at, updates) = (row.round, date(row.closed_at), did.updates);
            format!("{round:>5}  {at}  {updates:>5} updates  loss {loss}{kept}")
        };
        list.iter().map(line).collect::<Vec<_>>().join("\n")
    })?)
}

fn ordered(store: &Store, federation: &str, kind: OrderKind, ctx: &Context) -> CommandResult {
    order(store, federation, kind)?;
    let text = "ordered: the server carries it out as soon as it runs";
    Ok(ctx.result(&json!({ "federation": federation, "ordered": true }), || text.into())?)
}
