//! The `tojson` filter of chat templates: Python's `json.dumps`, not Jinja's HTML-safe variant.

use std::io;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// The deepest indentation a template may ask for.
const WIDEST_INDENT: usize = 16;

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None)`.
pub(super) fn python_json(value: &Value, options: &Kwargs) -> Result<String, Error> {
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let json = if let Some(indent) = indent {
        let indent = vec![b' '; indent.min(WIDEST_INDENT)];
        serialize(value, PrettyFormatter::with_indent(&indent))?
    } else {
        let (item, key) = match separators.as_deref() {
            Some([item, key]) => (item.as_str(), key.as_str()),
            _ => (", ", ": "),
        };
        serialize(value, Separated { item, key })?
    };
    Ok(if ascii.unwrap_or(false) { escape_non_ascii(&json) } else { json })
}

fn serialize(value: &Value, formatter: impl Formatter) -> Result<String, Error> {
    let failed =
        |error: &dyn std::fmt::Display| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut bytes = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
        .map_err(|error| failed(&error))?;
    String::from_utf8(bytes).map_err(|error| failed(&error))
}

/// JSON on one line with the separators that Python was given.
struct Separated<'a> {
    item: &'a str,
    key: &'a str,
}

impl Formatter for Separated<'_> {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

/// Characters beyond ASCII stand only inside strings, where JSON may write them as `\uXXXX`.
fn escape_non_ascii(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            escaped.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                escaped += &format!("\\u{unit:04x}");
            }
        }
    }
    escaped
}
