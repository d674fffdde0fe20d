//! The parts that pages are made of, as HTML for `style.css`.

use std::fmt::{Display, Write};

use super::text::Escaped;

/// A headline number.
#[derive(Debug, Clone)]
pub struct Tile {
    /// What it is.
    pub name: &'static str,
    /// The number.
    pub value: String,
    /// What it comes from, in small print.
    pub detail: String,
    /// Style class of the small print: `good`, `bad` or none.
    pub verdict: &'static str,
}

impl Tile {
    /// A number that is neither good nor bad.
    pub fn plain(name: &'static str, value: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name, value: value.into(), detail: detail.into(), verdict: "" }
    }
}

/// A chart with its heading, where there is something to draw.
pub type Card = Option<(&'static str, String)>;

/// Writes headline numbers beside each other.
pub fn tiles(html: &mut String, tiles: &[Tile]) {
    html.push_str(r#"<section class="tiles">"#);
    for tile in tiles {
        // Writing to a string does not fail.
        let _ = write!(
            html,
            r#"<div class="tile"><span>{}</span><b>{}</b><em class="{}">{}</em></div>"#,
            Escaped(tile.name),
            Escaped(&tile.value),
            tile.verdict,
            Escaped(&tile.detail),
        );
    }
    html.push_str("</section>\n");
}

/// Writes charts beside each other; those without content are left out.
pub fn cards(html: &mut String, cards: impl IntoIterator<Item = Card>) {
    let present: Vec<_> = cards.into_iter().flatten().collect();
    if present.is_empty() {
        return;
    }
    html.push_str(r#"<div class="grid2">"#);
    for (title, content) in present {
        card(html, title, None, Some(content));
    }
    html.push_str("</div>\n");
}

/// Writes HTML under a heading; nothing without content.
pub fn card(html: &mut String, title: &str, about: Option<&str>, content: Option<String>) {
    let Some(content) = content else { return };
    let _ = write!(html, r#"<section class="card"><h2>{}</h2>"#, Escaped(title));
    if let Some(about) = about {
        let _ = write!(html, r#"<p class="about">{}</p>"#, Escaped(about));
    }
    let _ = writeln!(html, "{content}</section>");
}

/// A table; each row is its style class and its cells, as [`cell`] makes them.
pub fn table(headings: &[&str], rows: impl Iterator<Item = (&'static str, Vec<String>)>) -> String {
    let mut html = r#"<div class="wide"><table><thead><tr>"#.to_owned();
    for heading in headings {
        let _ = write!(html, "<th>{}</th>", Escaped(heading));
    }
    html.push_str("</tr></thead><tbody>");
    for (class, cells) in rows {
        let _ = write!(html, r#"<tr class="{class}">"#);
        html.extend(cells);
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>");
    html
}

/// A cell of a table.
pub fn cell(value: impl Display) -> String {
    format!("<td>{}</td>", Escaped(&value.to_string()))
}
