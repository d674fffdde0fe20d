//! `report.html`: one file that shows a run, or several side by side, without anything beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::chart::{BarChart, HeatMap, LineChart, Series};
use super::comparison::Comparison;
use super::history::History;
use super::parts::{self, Card, Tile, cell, table};
use super::text::{self, Escaped};
use crate::evaluate::result::shown;
use crate::evaluate::suite::Metric;
use crate::simulate::journal::Answer;

/// Clients the heat map has room for.
const MAX_MAPPED_CLIENTS: usize = 32;
/// Dots the loss chart has room for.
const MAX_DOTS: usize = 4000;
/// Lines a chart stays readable with.
const MAX_LINES: usize = super::chart::COLOURS;

/// What the page says about a run besides its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heading {
    /// The page's title.
    pub title: String,
    /// What was trained on what, in a line.
    pub subtitle: String,
    /// Something the reader must know, such as a stand-in model.
    pub notice: Option<String>,
}

/// The page of one run. `config` is the run's complete configuration as TOML.
pub fn run_page(heading: &Heading, history: &History, config: &str) -> String {
    let mut page = Page::new(heading);
    page.tiles(&run_tiles(history));
    page.cards([training_loss(history), held_out_loss(history)]);
    page.cards([accuracy(history), traffic(history)]);
    page.cards([reward_margin(history), ranking_accuracy(history)]);
    page.card("Loss of each client", client_about(history), client_losses(history));
    page.card("Before and after", None, before_and_after(history));
    page.card("Suites", suites_about(history), suites_by_round(history));
    page.card("Answers to held-out prompts", None, run_answers(history));
    page.card("Rounds", None, rounds_table(history));
    page.configuration(config);
    page.finish()
}

/// The page of several runs of one configuration, each with its algorithm's name.
pub fn comparison_page(heading: &Heading, runs: &[(String, History)], config: &str) -> String {
    let named = runs.iter().map(|(name, history)| (name.as_str(), history));
    let comparison = Comparison::of(named.collect::<Vec<_>>());
    let mut page = Page::new(heading);
    page.tiles(&comparison_tiles(&comparison));
    page.card("Held-out rows", None, comparison_table(&comparison));
    page.card("Held-out rows by group", None, group_table(&comparison));
    page.card("Suites", None, suite_table(&comparison));
    page.cards([
        compared(runs, "Held-out loss", "held-out loss by round", text::loss, |history| {
            history.evaluations.iter().map(|e| (f64::from(e.round), e.score.loss)).collect()
        }),
        compared(runs, "Training loss", "training loss by round", text::loss, |history| {
            let rounds = history.rounds.iter();
            rounds.filter_map(|r| Some((f64::from(r.round), r.loss?))).collect()
        }),
    ]);
    page.card("Answers to held-out prompts", None, compared_answers(&comparison));
    for (name, history) in runs {
        if let Some(map) = client_losses(history) {
            page.card(&format!("{name}: loss of each client"), client_about(history), Some(map));
        }
    }
    page.configuration(config);
    page.finish()
}

/// A page as it grows.
struct Page {
    html: String,
}

impl Page {
    fn new(heading: &Heading) -> Self {
        let title = Escaped(&heading.title);
        let mut html = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <title>{title}</title><style>{}</style></head>\n<body><main>\n\
             <header><h1>{title}</h1><p>{}</p></header>\n",
            include_str!("style.css"),
            Escaped(&heading.subtitle),
        );
        if let Some(notice) = &heading.notice {
            let _ = writeln!(html, r#"<p class="notice" role="note">{}</p>"#, Escaped(notice));
        }
        Self { html }
    }

    fn tiles(&mut self, tiles: &[Tile]) {
        parts::tiles(&mut self.html, tiles);
    }

    /// Charts beside each other; those without content are left out.
    fn cards<const N: usize>(&mut self, cards: [Card; N]) {
        parts::cards(&mut self.html, cards);
    }

    fn card(&mut self, title: &str, about: Option<String>, content: Option<String>) {
        parts::card(&mut self.html, title, about.as_deref(), content);
    }

    fn configuration(&mut self, config: &str) {
        let _ = writeln!(
            self.html,
            r#"<section class="card"><details><summary>Configuration</summary><pre>{}</pre></details></section>"#,
            Escaped(config.trim_end()),
        );
    }

    fn finish(mut self) -> String {
        let _ = write!(
            self.html,
            "<footer>fleetune {} · loss in nats per supervised token</footer>\n</main></body></html>\n",
            env!("CARGO_PKG_VERSION"),
        );
        self.html
    }
}

fn verdict(better: bool) -> &'static str {
    if better { "good" } else { "bad" }
}

fn run_tiles(history: &History) -> Vec<Tile> {
    let mut tiles = Vec::new();
    if let (Some(before), Some(after)) = (history.before(), history.after()) {
        let (before, after) = (before.score, after.score);
        tiles.push(Tile {
            name: "held-out loss",
            value: text::loss(after.loss),
            detail: format!(
                "from {}, {}",
                text::loss(before.loss),
                text::change(before.loss, after.loss)
            ),
            verdict: verdict(after.loss <= before.loss),
        });
        tiles.push(Tile {
            name: after.accuracy().0,
            value: text::percent(after.accuracy().1),
            detail: format!("from {}", text::percent(before.accuracy().1)),
            verdict: verdict(after.accuracy().1 >= before.accuracy().1),
        });
    }
    let clients: BTreeSet<u32> = history.clients.iter().map(|client| client.client).collect();
    tiles.push(Tile::plain(
        "rounds",
        history.rounds.len().to_string(),
        format!(
            "{} of {}",
            text::plural(history.clients.len() as u64, "update"),
            text::plural(clients.len() as u64, "client")
        ),
    ));
    tiles.push(Tile::plain(
        "uploaded",
        text::bytes(history.bytes_up()),
        format!("{} downloaded", text::bytes(history.bytes_down())),
    ));
    tiles.push(Tile::plain(
        "tokens trained on",
        text::count(history.tokens()),
        history.tokens_per_second().map_or_else(String::new, |rate| format!("{rate:.0} a second")),
    ));
    tiles.push(Tile::plain("time", text::duration(history.seconds()), ""));
    tiles
}

fn comparison_tiles(comparison: &Comparison) -> Vec<Tile> {
    let Some((base, trained)) = comparison.rows.split_first() else { return Vec::new() };
    let mut tiles = vec![Tile::plain(
        "base model's held-out loss",
        text::loss(base.score.loss),
        format!("{} {}", base.score.accuracy().0, text::percent(base.score.accuracy().1)),
    )];
    if let Some(best) = trained.iter().min_by(|a, b| a.score.loss.total_cmp(&b.score.loss)) {
        tiles.push(Tile {
            name: "best held-out loss",
            value: text::loss(best.score.loss),
            detail: format!("{}, {}", best.name, text::change(base.score.loss, best.score.loss)),
            verdict: verdict(best.score.loss <= base.score.loss),
        });
    }
    tiles.push(Tile::plain("runs compared", trained.len().to_string(), ""));
    let tokens: u64 = trained.iter().map(|row| row.tokens).sum();
    let seconds: f64 = trained.iter().map(|row| row.seconds).sum();
    tiles.push(Tile::plain(
        "time",
        text::duration(seconds),
        format!("{} tokens", text::count(tokens)),
    ));
    tiles
}

fn chart(title: &'static str, html: Option<String>) -> Card {
    html.map(|html| (title, html))
}

fn training_loss(history: &History) -> Card {
    let rounds = history.rounds.iter();
    let points = rounds.filter_map(|r| Some((f64::from(r.round), r.loss?))).collect();
    let dots = history.clients.iter().take(MAX_DOTS).map(|client| {
        let says = format!(
            "client {}, round {}: {}",
            client.client,
            client.round,
            text::loss(client.loss)
        );
        (f64::from(client.round), client.loss, says)
    });
    let line = LineChart {
        label: "training loss by round, one dot per client",
        x_label: "round",
        series: vec![Series { name: "mean of the clients".into(), points }],
        dots: dots.collect(),
        format: text::loss,
    };
    chart("Training loss", line.render())
}

/// A line over all held-out rows, and one per group where they are few.
fn scores(
    history: &History,
    title: &'static str,
    label: &'static str,
    format: fn(f64) -> String,
    value: fn(&crate::simulate::journal::Score) -> Option<f64>,
) -> Card {
    let evaluations = || history.evaluations.iter();
    let all = evaluations().filter_map(|e| Some((f64::from(e.round), value(&e.score)?))).collect();
    let mut series = vec![Series { name: "all".into(), points: all }];
    let groups = history.groups();
    if groups.len() < MAX_LINES {
        series.extend(groups.into_iter().map(|group| {
            let points = evaluations()
                .filter_map(|e| Some((f64::from(e.round), value(e.groups.get(group)?)?)));
            Series { name: group.to_owned(), points: points.collect() }
        }));
    }
    let line = LineChart { label, x_label: "round", series, dots: Vec::new(), format };
    chart(title, line.render())
}

fn held_out_loss(history: &History) -> Card {
    scores(history, "Held-out loss", "held-out loss by round", text::loss, |score| Some(score.loss))
}

fn accuracy(history: &History) -> Card {
    let (title, label) = match history.before().and_then(|before| before.score.preference) {
        None => ("Token accuracy", "share of held-out tokens predicted, by round"),
        Some(_) => ("Reward accuracy", "share of held-out pairs judged rightly, by round"),
    };
    scores(history, title, label, text::percent, |score| Some(score.accuracy().1))
}

/// Preferences alone.
fn reward_margin(history: &History) -> Card {
    let label = "reward of the better answer minus that of the other, by round";
    scores(history, "Reward margin", label, text::loss, |score| {
        Some(score.preference?.judged.reward_margin)
    })
}

/// Preferences alone.
fn ranking_accuracy(history: &History) -> Card {
    let label = "share of held-out pairs whose better answer is the likelier one, by round";
    scores(history, "Ranking accuracy", label, text::percent, |score| {
        Some(score.preference?.ranking_accuracy)
    })
}

fn traffic(history: &History) -> Card {
    let bars = BarChart {
        label: "encoded bytes sent in each round",
        x_label: "round",
        parts: vec!["from clients".into(), "to clients".into()],
        bars: history
            .rounds
            .iter()
            .map(|round| (round.round, vec![round.bytes_up as f64, round.bytes_down as f64]))
            .collect(),
        format: |value| text::bytes(value as u64),
        unit: 1024.0,
    };
    chart("Traffic", bars.render())
}

/// The clients with the most updates, as many as the map shows, by number.
fn mapped_clients(history: &History) -> (Vec<u32>, usize) {
    let mut updates = BTreeMap::<u32, usize>::new();
    for client in &history.clients {
        *updates.entry(client.client).or_default() += 1;
    }
    let all = updates.len();
    let mut clients: Vec<(u32, usize)> = updates.into_iter().collect();
    // A stable sort: among equals the lower numbers stay.
    clients.sort_by_key(|&(_, updates)| std::cmp::Reverse(updates));
    let mut chosen: Vec<u32> =
        clients.into_iter().take(MAX_MAPPED_CLIENTS).map(|(client, _)| client).collect();
    chosen.sort_unstable();
    (chosen, all)
}

fn client_about(history: &History) -> Option<String> {
    let (shown, all) = mapped_clients(history);
    (shown.len() < all).then(|| {
        format!("The {} clients with the most updates, of {all} that took part.", shown.len())
    })
}

fn client_losses(history: &History) -> Option<String> {
    let (clients, _) = mapped_clients(history);
    if clients.len() < 2 {
        return None;
    }
    let row_of: BTreeMap<u32, usize> = clients.iter().enumerate().map(|(i, &c)| (c, i)).collect();
    let map = HeatMap {
        label: "mean training loss of each client in each round",
        x_label: "round",
        rows: clients.iter().map(|client| format!("client {client}")).collect(),
        columns: history.rounds.last().map_or(0, |round| round.round),
        cells: history
            .clients
            .iter()
            .filter_map(|c| Some((*row_of.get(&c.client)?, c.round, c.loss)))
            .collect(),
        format: text::loss,
    };
    map.render()
}

/// A table of rows of cells that are HTML already.
fn before_and_after(history: &History) -> Option<String> {
    let (before, after) = (history.before()?, history.after()?);
    let row = |name: &str, before: Option<&_>, after: Option<&_>| -> Option<Vec<String>> {
        let (before, after): (&crate::simulate::journal::Score, &crate::simulate::journal::Score) =
            (before?, after?);
        let better = verdict(after.loss <= before.loss);
        Some(vec![
            cell(name),
            cell(text::count(after.rows)),
            cell(text::loss(before.loss)),
            cell(text::loss(after.loss)),
            format!(r#"<td class="{better}">{}</td>"#, text::change(before.loss, after.loss)),
            cell(text::percent(before.accuracy().1)),
            cell(text::percent(after.accuracy().1)),
        ])
    };
    let groups = history.groups();
    let rows = groups
        .into_iter()
        .filter_map(|group| {
            Some(("", row(group, before.groups.get(group), after.groups.get(group))?))
        })
        .chain(row("all", Some(&before.score), Some(&after.score)).map(|cells| ("total", cells)));
    let headings = [
        "held-out rows",
        "number",
        "loss before",
        "loss after",
        "change",
        "accuracy before",
        "accuracy after",
    ];
    Some(table(&headings, rows))
}

fn rounds_table(history: &History) -> Option<String> {
    if history.rounds.is_empty() {
        return None;
    }
    let rows = history.rounds.iter().map(|round| {
        let cells = [
            round.round.to_string(),
            round.clients.len().to_string(),
            format!("{:.2e}", round.learning_rate),
            round.loss.map_or_else(|| "–".into(), text::loss),
            format!("{:.4}", round.change_norm),
            text::count(round.tokens),
            text::bytes(round.bytes_up),
            text::bytes(round.bytes_down),
            text::duration(round.seconds),
        ];
        ("", cells.into_iter().map(cell).collect())
    });
    let headings = [
        "round",
        "clients",
        "learning rate",
        "loss",
        "change of the adapter",
        "tokens",
        "uploaded",
        "downloaded",
        "time",
    ];
    Some(format!(
        "<details><summary>{}, one by one</summary>{}</details>",
        text::plural(history.rounds.len() as u64, "round"),
        table(&headings, rows)
    ))
}

fn answer_block(html: &mut String, asked: &Answer, answers: &[(&str, &str)]) {
    let _ = write!(html, r#"<div class="answer"><p class="prompt">{}"#, Escaped(&asked.prompt));
    if let Some(group) = &asked.group {
        let _ = write!(html, r#"<span class="tag">{}</span>"#, Escaped(group));
    }
    let _ = write!(html, "</p><dl><dt>expected</dt><dd>{}</dd>", Escaped(&asked.expected));
    for (name, answer) in answers {
        let _ = write!(html, "<dt>{}</dt><dd>{}</dd>", Escaped(name), Escaped(answer));
    }
    html.push_str("</dl></div>");
}

fn run_answers(history: &History) -> Option<String> {
    let after = history.after()?;
    let before = history.before();
    let mut html = String::new();
    for (i, asked) in after.answers.iter().enumerate() {
        let base = before.and_then(|before| before.answers.get(i));
        let base = base.map(|answer| ("before", answer.answer.as_str()));
        let answers: Vec<_> = base.into_iter().chain([("after", asked.answer.as_str())]).collect();
        answer_block(&mut html, asked, &answers);
    }
    (!html.is_empty()).then_some(html)
}

fn compared_answers(comparison: &Comparison) -> Option<String> {
    let mut html = String::new();
    for (i, asked) in comparison.rows.first()?.answers.iter().enumerate() {
        let answers = comparison
            .rows
            .iter()
            .filter_map(|row| Some((row.name.as_str(), row.answers.get(i)?.answer.as_str())));
        answer_block(&mut html, asked, &answers.collect::<Vec<_>>());
    }
    (!html.is_empty()).then_some(html)
}

fn comparison_table(comparison: &Comparison) -> Option<String> {
    let lowest = comparison.rows.iter().map(|row| row.score.loss).min_by(f64::total_cmp);
    let rows = comparison.rows.iter().map(|row| {
        let mut cells = vec![
            cell(&row.name),
            loss_cell(Some(row.score.loss), lowest),
            cell(text::percent(row.score.accuracy().1)),
        ];
        if row.tokens > 0 {
            let numbers = [
                text::bytes(row.bytes_up),
                text::bytes(row.bytes_down),
                text::count(row.tokens),
                text::duration(row.seconds),
            ];
            cells.extend(numbers.into_iter().map(cell));
        } else {
            cells.extend(std::iter::repeat_n(cell("–"), 4));
        }
        ("", cells)
    });
    let accuracy = comparison.accuracy_name();
    let headings =
        ["adapter", "held-out loss", accuracy, "uploaded", "downloaded", "tokens", "time"];
    (!comparison.rows.is_empty()).then(|| table(&headings, rows))
}

/// One line per group, one column per adapter.
fn group_table(comparison: &Comparison) -> Option<String> {
    let groups = comparison.groups();
    let rows = groups.iter().map(|group| {
        let losses = || comparison.rows.iter().map(|row| Some(row.groups.get(*group)?.loss));
        let lowest = losses().flatten().min_by(f64::total_cmp);
        let cells = losses().map(|loss| loss_cell(loss, lowest));
        ("", std::iter::once(cell(group)).chain(cells).collect())
    });
    let names = comparison.rows.iter().map(|row| row.name.as_str());
    let headings: Vec<&str> = std::iter::once("held-out loss").chain(names).collect();
    (!groups.is_empty()).then(|| table(&headings, rows))
}

/// Numbers about whole suites: one line a number, one column an evaluation.
fn suites_by_round(history: &History) -> Option<String> {
    let rounds = history.suite_rounds();
    // A judge may have rated nothing in one round and something in another.
    let mut numbers: Vec<(&str, &Metric)> = Vec::new();
    for suite in rounds.iter().flat_map(|&round| history.suites_at(round)) {
        for metric in suite.overall() {
            if !numbers.iter().any(|(s, m)| *s == suite.suite && m.name == metric.name) {
                numbers.push((&suite.suite, metric));
            }
        }
    }
    if numbers.is_empty() {
        return None;
    }
    let rows = numbers.into_iter().map(|(name, metric)| {
        let values = rounds.iter().map(|&round| {
            let found = history.suites_at(round).find(|suite| suite.suite == name);
            let found = found.and_then(|s| s.overall().find(|m| m.name == metric.name));
            cell(found.map(shown).unwrap_or_default())
        });
        let name = cell(format!("{name} {}", metric.name));
        let cells = [name].into_iter().chain(values).chain([cell(metric.rows)]);
        ("", cells.collect())
    });
    let columns: Vec<String> = rounds.iter().map(|round| format!("round {round}")).collect();
    let columns = columns.iter().map(String::as_str);
    let headings: Vec<&str> = ["suite"].into_iter().chain(columns).chain(["rows"]).collect();
    Some(table(&headings, rows))
}

fn suites_about(history: &History) -> Option<String> {
    let left_out: usize = history.suites_at(0).map(|suite| suite.rows_seen).sum();
    (left_out > 0).then(|| {
        format!(
            "{} about texts that clients train on were left out.",
            text::plural(left_out as u64, "question")
        )
    })
}

/// One line per suite, one column per adapter.
fn suite_table(comparison: &Comparison) -> Option<String> {
    let suites = comparison.suites();
    let rows = suites.iter().map(|(suite, metric)| {
        let values = comparison.rows.iter().map(|row| row.suite(suite, metric));
        let cells = values.map(|value| cell(value.unwrap_or_default()));
        ("", std::iter::once(cell(format!("{suite} {metric}"))).chain(cells).collect())
    });
    let names = comparison.rows.iter().map(|row| row.name.as_str());
    let headings: Vec<&str> = std::iter::once("suite").chain(names).collect();
    (!suites.is_empty()).then(|| table(&headings, rows))
}

/// A loss, marked where it is the lowest.
fn loss_cell(loss: Option<f64>, lowest: Option<f64>) -> String {
    let class = if loss.is_some() && loss == lowest { "best" } else { "" };
    format!(r#"<td class="{class}">{}</td>"#, loss.map_or_else(|| "–".into(), text::loss))
}

fn compared(
    runs: &[(String, History)],
    title: &'static str,
    label: &'static str,
    format: fn(f64) -> String,
    points: fn(&History) -> Vec<(f64, f64)>,
) -> Card {
    let series = runs
        .iter()
        .map(|(name, history)| Series { name: name.clone(), points: points(history) })
        .collect();
    let line = LineChart { label, x_label: "round", series, dots: Vec::new(), format };
    chart(title, line.render())
}
