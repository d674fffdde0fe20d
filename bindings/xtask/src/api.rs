//! What the bindings offer, as a text that a change of it cannot pass unseen.
//!
//! `bindings/api.txt` lists every public declaration as Swift sees it. `bindings/CHANGELOG.md` names
//! the first digits of its SHA-256 at each change, so that neither changes without the other.

use std::fs;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::generate::generated;
use crate::root;

/// Digits of the hash that the changelog names.
const DIGITS: usize = 12;

/// Writes the list, and says which line the changelog needs.
pub fn write() -> Result<()> {
    let api = list()?;
    let path = root().join("bindings/api.txt");
    fs::write(&path, &api).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", digest(&api));
    Ok(())
}

/// Fails where the list is not what the library offers, or the changelog does not know it.
pub fn check() -> Result<()> {
    let api = list()?;
    let path = root().join("bindings/api.txt");
    let known = fs::read_to_string(&path).unwrap_or_default();
    if known != api {
        let new = api.lines().filter(|line| !known.lines().any(|known| known == *line));
        let gone = known.lines().filter(|line| !api.lines().any(|api| api == *line));
        let new = new.map(|line| format!("+ {line}\n")).collect::<String>();
        let gone = gone.map(|line| format!("- {line}\n")).collect::<String>();
        bail!(
            "the bindings' interface has changed:\n{gone}{new}run `cargo xtask bindings` and tell \
             of the change in bindings/CHANGELOG.md, under the digits that it prints"
        );
    }
    let changelog = fs::read_to_string(root().join("bindings/CHANGELOG.md"))?;
    if !changelog.contains(&digest(&api)) {
        bail!("bindings/CHANGELOG.md does not name {}: tell what changed", digest(&api));
    }
    Ok(())
}

fn digest(api: &str) -> String {
    let hash = Sha256::digest(api);
    hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>()[..DIGITS].to_owned()
}

/// What UniFFI adds to every type.
const INTERNAL: [&str; 7] = [
    "FfiConverter",
    "niffi",
    "NoHandle",
    "noHandle",
    "errorDescription",
    "hash(into",
    "static func ==",
];
/// How a converter's methods begin.
const CONVERTERS: [&str; 4] = ["lift(", "lower(", "read(", "write("];

/// The public declarations of the generated Swift source, without bodies and without UniFFI's own.
fn list() -> Result<String> {
    let path = generated("swift").join("Fleetune.swift");
    let source =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (_, declarations) = source.split_once("\npublic protocol ").context("no protocol")?;
    let declarations = without_comments(&format!("public protocol {declarations}"));
    let mut found = Vec::new();
    let mut lines = declarations.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if !is_offered(line) {
            continue;
        }
        let mut text = line.to_owned();
        // Parameters may have lines of their own.
        while text.matches('(').count() > text.matches(')').count() {
            let Some(more) = lines.next() else { break };
            text = format!("{text} {more}");
        }
        let end = text.find('{').unwrap_or(text.len());
        let words: Vec<&str> = text[..end].split_whitespace().collect();
        found.push(words.join(" ").replace("( ", "(").replace(" )", ")"));
    }
    Ok(found.join("\n") + "\n")
}

fn is_offered(line: &str) -> bool {
    let starts = ["public ", "open ", "enum ", "func ", "case "];
    let converter = |name: &&str| line.starts_with(&format!("public static func {name}"));
    // An arm of a switch is no declaration.
    let arm = line.starts_with("case ") && (line.ends_with(':') || line.contains(": return"));
    starts.iter().any(|start| line.starts_with(start))
        && !INTERNAL.iter().any(|word| line.contains(word))
        && !CONVERTERS.iter().any(|name| converter(&name))
        && !arm
}

fn without_comments(source: &str) -> String {
    let mut parts = source.split("/**");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept += part.split_once("*/").map_or("", |(_, code)| code);
    }
    kept
}
