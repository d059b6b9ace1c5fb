//! Chat templates: from messages to the text a model was trained on.

use std::io::{self, Write};

use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;

use crate::gguf::{GgufError, GgufFile};
use crate::tokenizer::Tokenizer;

/// The name the template is registered under; template errors show it.
const NAME: &str = "chat_template";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    /// A message of the user.
    pub fn user(content: impl Into<String>) -> Message {
        Message::new("user", content)
    }

    /// A message of the model.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message::new("assistant", content)
    }

    /// An instruction before the conversation.
    pub fn system(content: impl Into<String>) -> Message {
        Message::new("system", content)
    }
}

/// Why a chat template could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The file carries none, or not as text.
    #[error("read the chat template: {0}")]
    Metadata(#[from] GgufError),
    /// The template is not valid.
    #[error("parse the model's chat template: {}; use an instruct model with a plain template", one_line(.0))]
    Parse(#[source] minijinja::Error),
    /// The template refused the messages (`raise_exception`) or failed on them.
    #[error("render the chat template over {messages} messages: {}", one_line(.source))]
    Render {
        /// How many messages there were.
        messages: usize,
        /// The template engine's reason.
        #[source]
        source: minijinja::Error,
    },
}

/// An error of the template engine in one line: kind, detail and line number.
fn one_line(error: &minijinja::Error) -> String {
    error.to_string().lines().collect::<Vec<_>>().join(" ")
}

/// A model's chat template, parsed.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// The template of a model file (`tokenizer.chat_template`). Errors: none there, or not valid.
    pub fn from_gguf(file: &GgufFile, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let source = file.str("tokenizer.chat_template")?;
        let name = |id: Option<u32>| {
            let piece = id.map(|id| tokenizer.piece(id)).unwrap_or_default();
            String::from_utf8_lossy(piece).into_owned()
        };
        Self::new(source, name(tokenizer.bos()), name(tokenizer.eos()))
    }

    /// Parses a template. `bos` and `eos` are what `bos_token` and `eos_token` render to.
    ///
    /// The environment is that of the `transformers` library: blocks take the line break after them and the white
    /// space before them, loops have `break` and `continue`, values have Python's string and mapping methods, and
    /// `raise_exception` and `tojson` exist. `strftime_now` does not: a prompt must not depend on the clock.
    pub fn new(source: &str, bos: String, eos: String) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, source.to_owned()).map_err(TemplateError::Parse)?;
        Ok(ChatTemplate { environment, bos, eos })
    }

    /// The conversation as text, ending where the model's answer begins. To be tokenised with
    /// [`SpecialTokens::Parse`](crate::tokenizer::SpecialTokens::Parse).
    pub fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        self.render_with(messages, true)
    }

    /// As [`render`](Self::render); without `generation_prompt` the text ends after the last message.
    pub fn render_with(&self, messages: &[Message], generation_prompt: bool) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).expect("registered by the constructor");
        template
            .render(context! {
                messages => messages,
                bos_token => self.bos,
                eos_token => self.eos,
                add_generation_prompt => generation_prompt,
            })
            .map_err(|source| TemplateError::Render { messages: messages.len(), source })
    }
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `json.dumps(value, ensure_ascii=False)`, which leaves `<`, `>` and `&` alone, unlike the engine's filter.
fn tojson(value: minijinja::Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut out = Vec::new();
    let written = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonSeparators)),
        Some(width) => {
            let margin = " ".repeat(width.min(16));
            let format = serde_json::ser::PrettyFormatter::with_indent(margin.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, format))
        }
    };
    written.map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(String::from_utf8(out).expect("JSON is written as UTF-8"))
}

/// A space after each comma and colon, as Python writes JSON on one line.
struct PythonSeparators;

impl serde_json::ser::Formatter for PythonSeparators {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[Message]) -> Result<String, TemplateError> {
        ChatTemplate::new(source, "<s>".into(), "</s>".into())?.render(messages)
    }

    #[test]
    fn chatml_with_a_default_system_message() {
        let source = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
            {{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + \
            message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}\
            {{ '<|im_start|>assistant\n' }}{% endif %}";
        assert_eq!(
            render(source, &[Message::user("hi <b> & \"x\"")]).unwrap(),
            "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nhi <b> & \"x\"<|im_end|>\n<|im_start|>assistant\n"
        );
        let template = ChatTemplate::new(source, String::new(), String::new()).unwrap();
        let talk = [Message::system("S"), Message::user("u"), Message::assistant("a")];
        assert_eq!(
            template.render_with(&talk, false).unwrap(),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        );
    }

    #[test]
    fn python_methods_loop_controls_and_blocks_as_transformers_has_them() {
        let source = "{{ bos_token }}\n{% for m in messages %}\n  {% if m.content.startswith('skip') %}{% continue %}{% endif %}\n\
            [{{ m.role.upper() }}] {{ m['content'].strip() | tojson }}{{ eos_token }}\n{% endfor %}\n";
        let talk = [Message::user("skip me"), Message::user("  <a> \"é\" ")];
        assert_eq!(render(source, &talk).unwrap(), "<s>\n[USER] \"<a> \\\"é\\\"\"</s>\n");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let source = "{{ {'a': [1, 'é<'], 'b': none} | tojson }} {{ [1] | tojson(indent=2) }}";
        assert_eq!(render(source, &[]).unwrap(), "{\"a\": [1, \"é<\"], \"b\": null} [\n  1\n]");
    }

    #[test]
    fn a_template_can_refuse_and_a_broken_one_is_named() {
        let source = "{% if messages[0].role != 'user' %}{{ raise_exception('start with the user') }}{% endif %}";
        let refused = render(source, &[Message::assistant("x")]).unwrap_err();
        assert!(refused.to_string().contains("start with the user"), "{refused}");
        assert!(matches!(refused, TemplateError::Render { messages: 1, .. }));
        let broken = render("{% if %}", &[]).unwrap_err();
        assert!(matches!(broken, TemplateError::Parse(_)));
        assert_eq!(broken.to_string().lines().count(), 1);
    }
}
