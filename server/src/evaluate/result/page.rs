//! The page: one self-contained file with all numbers and the wrong answers.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use super::{EvaluationResult, Example, SuiteResult, shown};
use crate::evaluate::suite::Metric;
use crate::report::text::{self, Escaped};

/// Wrong answers shown of each suite.
const SHOWN: usize = 100;
/// Letters shown of a prompt: its end holds the question.
const PROMPT_LETTERS: usize = 2000;

/// The page of a run. `journal` is the file that holds all answers.
pub fn page(result: &EvaluationResult, journal: &str) -> String {
    let identity = &result.identity;
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Evaluation of {model}</title><style>{style}</style></head>\n<body><main>\n\
         <header><h1>Evaluation of {model}</h1><p>{about}</p></header>\n",
        model = Escaped(&identity.to_string()),
        style = include_str!("../../report/style.css"),
        about = Escaped(&format!(
            "{} · model {}{}",
            httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(result.started)),
            identity.model_sha256,
            identity
                .adapter_sha256
                .as_ref()
                .map(|sha| format!(", adapter {sha}"))
                .unwrap_or_default()
        )),
    );
    tiles(&mut html, result);
    for suite in &result.suites {
        card(&mut html, suite, journal);
    }
    for unfinished in &result.unfinished {
        let _ = writeln!(html, "<section><p>{}</p></section>", Escaped(&unfinished.to_string()));
    }
    let _ = write!(
        html,
        "<footer>fleetune {} · values with standard errors</footer>\n</main></body></html>\n",
        Escaped(&result.version)
    );
    html
}

/// The most important number of each suite.
fn tiles(html: &mut String, result: &EvaluationResult) {
    html.push_str(r#"<section class="tiles">"#);
    for suite in &result.suites {
        let Some(metric) = suite.overall().next() else { continue };
        let _ = write!(
            html,
            r#"<div class="tile"><span>{}</span><b>{:.4}</b><em>{}, {} rows</em></div>"#,
            Escaped(&suite.suite),
            metric.value,
            Escaped(&metric.name),
            metric.rows
        );
    }
    html.push_str("</section>\n");
}

fn card(html: &mut String, suite: &SuiteResult, journal: &str) {
    let about = format!(
        "{}; {} of {} questions in {}{}",
        suite.manner(),
        suite.rows,
        suite.rows_in_suite,
        text::duration(suite.seconds),
        suite.judge.as_ref().map(|judge| format!("; judged by {judge}")).unwrap_or_default()
    );
    let _ = write!(
        html,
        r#"<section class="card" id="{name}"><h2>{name}</h2><p class="about">{}</p>"#,
        Escaped(&about),
        name = Escaped(&suite.suite)
    );
    for note in suite.notes() {
        let _ = write!(html, r#"<p class="notice" role="note">{}</p>"#, Escaped(&note));
    }
    let overall = suite.overall().map(|m| vec![m.name.clone(), shown(m), m.rows.to_string()]);
    table(html, &["metric", "value", "rows"], overall);
    parts(html, suite);
    details(html, "The first prompt", &suite.prompt);
    wrong(html, suite, journal);
    html.push_str("</section>\n");
}

/// The numbers about parts: one line a part, one column a metric.
fn parts(html: &mut String, suite: &SuiteResult) {
    let mut names: Vec<&str> = Vec::new();
    let mut lines: Vec<(&str, BTreeMap<&str, &Metric>)> = Vec::new();
    for metric in suite.parts() {
        let group = metric.group.as_deref().unwrap_or_default();
        if !names.contains(&metric.name.as_str()) {
            names.push(&metric.name);
        }
        match lines.iter_mut().find(|(name, _)| *name == group) {
            Some((_, line)) => drop(line.insert(&metric.name, metric)),
            None => lines.push((group, BTreeMap::from([(metric.name.as_str(), metric)]))),
        }
    }
    if lines.is_empty() {
        return;
    }
    let _ = write!(html, "<details><summary>{} parts</summary>", lines.len());
    let headings: Vec<&str> =
        ["part"].into_iter().chain(names.iter().copied()).chain(["rows"]).collect();
    let rows = lines.iter().map(|(group, line)| {
        let values = names.iter().map(|name| line.get(name).map(|m| shown(m)).unwrap_or_default());
        let rows = line.values().map(|metric| metric.rows).max().unwrap_or(0);
        let mut cells = vec![(*group).to_owned()];
        cells.extend(values);
        cells.push(rows.to_string());
        cells
    });
    table(html, &headings, rows);
    html.push_str("</details>");
}

fn wrong(html: &mut String, suite: &SuiteResult, journal: &str) {
    if suite.wrong.is_empty() {
        return;
    }
    let number = suite.wrong.len();
    let which = match number > SHOWN {
        true => format!("{number} wrong answers (the first {SHOWN}; all are in {journal})"),
        false => format!("{number} wrong answers"),
    };
    let _ = write!(html, "<details><summary>{}</summary>", Escaped(&which));
    for Example { id, prompt, answer, expected, understood } in suite.wrong.iter().take(SHOWN) {
        let _ = write!(html, "<details><summary>{}</summary>", Escaped(id));
        let skipped = prompt.chars().count().saturating_sub(PROMPT_LETTERS);
        let end: String = prompt.chars().skip(skipped).collect();
        let dots = if skipped > 0 { "…" } else { "" };
        for (title, content) in [
            ("prompt", &format!("{dots}{end}")),
            ("answer", answer),
            ("understood", understood),
            ("expected", expected),
        ] {
            if !content.is_empty() {
                let _ = write!(html, "<p>{title}</p><pre>{}</pre>", Escaped(content));
            }
        }
        html.push_str("</details>");
    }
    html.push_str("</details>");
}

fn details(html: &mut String, title: &str, content: &str) {
    let _ = write!(
        html,
        "<details><summary>{}</summary><pre>{}</pre></details>",
        Escaped(title),
        Escaped(content)
    );
}

fn table(html: &mut String, headings: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    html.push_str(r#"<div class="wide"><table><thead><tr>"#);
    for heading in headings {
        let _ = write!(html, "<th>{}</th>", Escaped(heading));
    }
    html.push_str("</tr></thead><tbody>");
    for row in rows {
        html.push_str("<tr>");
        for cell in row {
            let _ = write!(html, "<td>{}</td>", Escaped(&cell));
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>");
}

#[cfg(test)]
mod tests {
    use super::super::tests::result;
    use super::*;

    #[test]
    fn the_page_holds_numbers_parts_and_wrong_answers_and_no_markup_of_theirs() {
        let html = page(&result(), "out.journal.jsonl");
        for part in ["0.2500 ± 0.0125", "group:STEM", "1 wrong answers", "&lt;b&gt;?", "1 &lt; 2?"]
        {
            assert!(html.contains(part), "{part} is missing");
        }
        assert!(!html.contains("<b>?"));
        assert!(!html.contains("http://") && !html.contains("https://"));
    }
}
