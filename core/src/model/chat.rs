//! Chat templates: how a model writes a conversation down.
//!
//! The templates are Jinja programs out of the model's files and are rendered as transformers
//! does. They are not trusted: each rendering may execute a bounded number of instructions.

mod json;
mod time;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value, context};

use crate::data::Message;

/// Instructions a rendering may execute; long conversations need some ten thousand.
const FUEL: u64 = 2_000_000;
/// No template in use is a tenth as long.
const LONGEST_SOURCE: usize = 1 << 20;

/// Why a conversation cannot be written down.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the model's chat template fails: {message}")]
pub struct ChatTemplateError {
    message: String,
}

/// A model's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    /// What is wrong with the template is told to who uses it, not to who opens the model.
    compiled: Result<Arc<Environment<'static>>, ChatTemplateError>,
    special_tokens: BTreeMap<&'static str, String>,
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are names that the template may use (`bos_token`)
    /// with the tokens they stand for.
    pub fn new(
        source: String,
        special_tokens: impl IntoIterator<Item = (&'static str, Option<String>)>,
    ) -> Self {
        let special_tokens = special_tokens
            .into_iter()
            .filter_map(|(name, token)| token.map(|token| (name, token)))
            .collect();
        let compiled = compile(&source).map(Arc::new);
        Self { source, compiled, special_tokens }
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Writes the conversation down. With `add_generation_prompt` the text ends where the
    /// assistant's next answer begins.
    ///
    /// # Errors
    /// When the template is broken, refuses the conversation, or does not come to an end.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, ChatTemplateError> {
        let environment = self.compiled.as_ref().map_err(Clone::clone)?;
        let turns: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.name(), content => &message.content })
            .collect();
        let special_tokens = Value::from(self.special_tokens.clone());
        let variables = context! {
            messages => turns,
            tools => (),
            documents => (),
            add_generation_prompt => add_generation_prompt,
            ..special_tokens
        };
        environment
            .get_template(NAME)
            .and_then(|template| template.render(variables))
            .map_err(|error| told(&error))
    }
}

/// The only template of its environment.
const NAME: &str = "chat_template";

fn compile(source: &str) -> Result<Environment<'static>, ChatTemplateError> {
    if source.len() > LONGEST_SOURCE {
        let message = format!("it is {} bytes long", source.len());
        return Err(ChatTemplateError { message });
    }
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| told(&error))?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| {
        time::format_utc(&format, SystemTime::now())
    });
    // Python cannot iterate over None, and templates ask before they look for tools.
    environment.add_test("iterable", |value: Value| {
        use ValueKind as K;
        matches!(value.kind(), K::String | K::Seq | K::Map | K::Iterable | K::Undefined)
    });
    environment
        .add_filter("tojson", |value: Value, options: Kwargs| json::python_json(&value, &options));
    environment
        .add_template_owned(NAME, without_generation_marks(source))
        .map_err(|error| told(&error))?;
    Ok(environment)
}

/// `{% generation %}` marks what the assistant says, for transformers' own masks, and writes
/// nothing. A condition that always holds takes its place, so that blanks around it stay as they
/// are.
fn without_generation_marks(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        let Some(len) = tag.find("%}") else { break };
        let body = &tag[..len];
        let name = body.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        result.push_str(before);
        match name {
            "generation" => result.push_str(&body.replace(name, "if true")),
            "endgeneration" => result.push_str(&body.replace(name, "endif")),
            _ => result.push_str(body),
        }
        rest = &tag[len..];
    }
    result + rest
}

/// The message of a template's error: what it raised itself, without the engine's words around it.
fn told(error: &Error) -> ChatTemplateError {
    let message = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "it does not come to an end".to_owned(),
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        _ => error.to_string(),
    };
    ChatTemplateError { message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Role;

    fn render(source: &str, messages: &[Message], open: bool) -> Result<String, String> {
        let tokens = [("bos_token", Some("<s>".to_owned())), ("pad_token", None)];
        ChatTemplate::new(source.to_owned(), tokens)
            .render(messages, open)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn blocks_swallow_their_line_as_in_transformers() {
        let source = "{{ bos_token }}\n  {% for m in messages %}\n{{ m['role'] }}: \
                      {{ m.content.strip() }}\n  {% endfor %}\nend{{ pad_token }}\n";
        let messages = [Message::new(Role::User, " hi "), Message::new(Role::Assistant, "yo")];
        assert_eq!(render(source, &messages, false).unwrap(), "<s>\nuser: hi\nassistant: yo\nend");
    }

    #[test]
    fn a_template_can_refuse_a_conversation_with_its_own_words() {
        let source = "{{ raise_exception('roles must alternate') }}";
        let error = render(source, &[], false).unwrap_err();
        assert_eq!(error, "the model's chat template fails: roles must alternate");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let messages = [Message::new(Role::User, "<b> & 'é'")];
        let json = render("{{ messages[0] | tojson }}", &messages, false).unwrap();
        assert_eq!(json, r#"{"role": "user", "content": "<b> & 'é'"}"#);
        let json = render("{{ [1, {'a': []}] | tojson(indent=2) }}", &[], false).unwrap();
        assert_eq!(json, "[\n  1,\n  {\n    \"a\": []\n  }\n]");
        let json = render("{{ ['é', 2] | tojson(ensure_ascii=True) }}", &[], false).unwrap();
        assert_eq!(json, "[\"\\u00e9\", 2]");
        let json = render("{{ [1, {'b': 2}] | tojson(separators=(',', ':')) }}", &[], false);
        assert_eq!(json.unwrap(), "[1,{\"b\":2}]");
    }

    #[test]
    fn absent_tools_are_none_and_not_iterable() {
        let source = "{{ tools is none }} {{ tools is iterable }} {{ messages is iterable }}";
        assert_eq!(render(source, &[], false).unwrap(), "True False True");
    }

    #[test]
    fn marks_of_generated_text_write_nothing() {
        let source = "a\n{%- generation -%} b {%- endgeneration -%}\nc{% generation %}d\
                      {% endgeneration %}";
        assert_eq!(render(source, &[], false).unwrap(), "abcd");
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let nested = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}\
                      {% endfor %}";
        let error = render(nested, &[], false).unwrap_err();
        assert!(error.ends_with("it does not come to an end"), "{error}");
        let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
        render(recursive, &[], false).unwrap_err();
    }

    #[test]
    fn a_broken_template_is_an_error_when_it_is_used() {
        let template = ChatTemplate::new("{% for %}".to_owned(), []);
        assert_eq!(template.source(), "{% for %}");
        let error = template.render(&[], false).unwrap_err().to_string();
        assert!(error.contains("syntax error"), "{error}");
    }
}
