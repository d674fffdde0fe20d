//! The page as a whole: complete, self-contained, and safe with hostile text in every place.

use std::collections::BTreeMap;

use super::history::History;
use super::page::{Heading, comparison_page, run_page};
use crate::simulate::journal::{
    Answer, ClientRecord, EvaluationRecord, Record, RoundRecord, Score,
};

/// A made-up run of `rounds` rounds with four of `clients` clients each.
fn run(rounds: u32, clients: u32, group_names: &[&str], floor: f64) -> History {
    let mut records = Vec::new();
    let loss_at = |round: u32, shift: f64| {
        floor
            + shift
            + (2.6 - floor) * (-f64::from(round) / 6.0).exp()
            + 0.03 * f64::from(round % 3)
    };
    let evaluation = |round: u32| {
        let score = |shift| Score {
            loss: loss_at(round, shift),
            token_accuracy: 0.75 - 0.2 * loss_at(round, shift) / 2.6,
            preference: None,
            rows: 40,
            supervised_tokens: 900,
        };
        let names = group_names.iter().enumerate();
        let groups = names.map(|(i, name)| ((*name).to_owned(), score(0.1 * i as f64 - 0.1)));
        let answer = Answer {
            group: group_names.first().map(|name| (*name).to_owned()),
            prompt: format!("How many grams are 3 kg?\n{}", group_names.first().unwrap_or(&"")),
            expected: "3000 g".into(),
            answer: format!("after {round} rounds: {} g", round * 100),
        };
        Record::Evaluation(EvaluationRecord {
            rows_skipped: 0,
            round,
            score: score(0.0),
            groups: groups.collect::<BTreeMap<_, _>>(),
            answers: vec![answer],
            seconds: 1.5,
        })
    };
    records.push(evaluation(0));
    for round in 1..=rounds {
        let chosen: Vec<u32> = (0..4).map(|i| (round * 7 + i * 3) % clients).collect();
        for &client in &chosen {
            records.push(Record::Client(ClientRecord {
                rank: 8,
                rows_skipped: 0,
                round,
                client,
                rows: 60,
                steps: 8,
                tokens: 4000,
                supervised_tokens: 1100,
                loss: loss_at(round, 0.05 * f64::from(client % 5)),
                first_loss: 2.0,
                last_loss: 1.0,
                update_norm: 0.3,
                preference: None,
                bytes_up: 480_000 + u64::from(client) * 3_000,
                bytes_down: 510_000,
                seconds: 3.1,
            }));
        }
        records.push(Record::Round(RoundRecord {
            clients_skipped: Vec::new(),
            clients_per_pass: 1,
            round,
            clients: chosen,
            learning_rate: 1e-3,
            loss: Some(loss_at(round, 0.1)),
            change_norm: 0.2,
            product: None,
            tokens: 16_000,
            bytes_up: 1_950_000,
            bytes_down: 2_040_000,
            seconds: 12.5,
            elapsed_seconds: 14.0 * f64::from(round),
        }));
        if round % 2 == 0 || round == rounds {
            records.push(evaluation(round));
        }
    }
    records.into_iter().collect()
}

fn heading(text: &str) -> Heading {
    Heading { title: text.into(), subtitle: text.into(), notice: Some(text.into()) }
}

/// Writes the pages to the folder in `FLEETUNE_REPORT_SAMPLES`, for a look at them in a browser.
fn keep(name: &str, page: &str) {
    if let Some(folder) = std::env::var_os("FLEETUNE_REPORT_SAMPLES") {
        std::fs::write(std::path::Path::new(&folder).join(name), page).unwrap();
    }
}

#[test]
fn the_page_of_a_run_shows_every_part_and_needs_no_other_file() {
    let groups = ["arithmetic", "capitals", "units", "synonyms"];
    let page =
        run_page(&heading("fedavg on the demo set"), &run(24, 12, &groups, 0.9), "seed = 1\n");
    keep("run.html", &page);
    for part in [
        "Training loss",
        "Held-out loss",
        "Token accuracy",
        "Traffic",
        "Loss of each client",
        "Before and after",
        "Answers to held-out prompts",
        "Configuration",
        "seed = 1",
        "capitals",
    ] {
        assert!(page.contains(part), "{part}");
    }
    for outside in ["<script", "<link", "http://", "https://", "url(", "@import", "src="] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(!page.contains("NaN") && !page.contains(">inf"));
}

#[test]
fn the_page_of_a_comparison_marks_the_best_run() {
    let groups = ["arithmetic", "capitals"];
    let runs = [("local:0", 1.6), ("fedavg", 0.9), ("scaffold", 1.0)]
        .map(|(name, floor)| (name.to_owned(), run(16, 8, &groups, floor)));
    let page = comparison_page(&heading("three algorithms"), &runs, "rounds = 16");
    keep("comparison.html", &page);
    assert!(page.contains("base") && page.contains("local:0") && page.contains("scaffold"));
    assert!(page.contains(r#"class="best""#));
}

#[test]
fn hostile_text_from_data_and_configuration_stays_text() {
    let hostile = "<script>alert(1)</script>\"><svg onload='x'>&amp;\u{0}";
    let history = run(3, 6, &[hostile], 1.0);
    let runs = [(hostile.to_owned(), history.clone())];
    for page in [
        run_page(&heading(hostile), &history, hostile),
        comparison_page(&heading(hostile), &runs, hostile),
    ] {
        assert!(!page.contains("<script") && !page.contains("<svg onload"));
        assert!(!page.contains('\0'));
        assert!(page.contains("&lt;script&gt;"));
    }
}

#[test]
fn a_run_without_records_still_makes_a_page() {
    let page = run_page(&heading("nothing yet"), &History::default(), "");
    assert!(page.ends_with("</html>\n"));
    assert!(comparison_page(&heading("nothing yet"), &[], "").contains("nothing yet"));
}
