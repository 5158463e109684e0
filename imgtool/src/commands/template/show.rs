//! `imgtool template show`: what is known of a template.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

use block::escape;
use clap::Args;
use machines::Settings;
use machines::store::{Template, TemplateDocument};
use serde_json::{Value, json};

use crate::commands::Outcome;
use crate::output::{self, OutputFormat, human_size};
use crate::stores::StoreArgs;

/// Show what is known of a template
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool template show debian-12
  imgtool template show --output json 3f1a
  minisign -Sm \"$(imgtool template show debian-12 --path)\"")]
pub(super) struct ShowArgs {
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    /// Print the name of its image alone
    #[arg(long, conflicts_with = "output")]
    path: bool,
    #[command(flatten)]
    store: StoreArgs,
    /// Its alias, or the first digits of its fingerprint, four at least
    template: String,
}

impl ShowArgs {
    pub(super) fn run(self, out: &mut dyn Write) -> Outcome {
        let template = self.store.open()?.template(&self.template)?;
        if self.path {
            out.write_all(template.image().as_os_str().as_bytes())?;
            writeln!(out)?;
        } else {
            print(out, &template, self.output)?;
        }
        Ok(0)
    }
}

/// Prints all of a template.
pub(super) fn print(out: &mut dyn Write, template: &Template, format: OutputFormat) -> io::Result<()> {
    if format == OutputFormat::Json {
        return output::json(out, &as_json(template));
    }
    let document = &template.document;
    let aliases: Vec<&str> = template
        .aliases
        .iter()
        .map(machines::store::Alias::as_str)
        .collect();
    let disk = format!(
        "{} (image: {})",
        human_size(document.disk_size),
        human_size(document.image_size)
    );
    let made_of = document.provenance.as_ref().and_then(|made| made.source.clone());
    let lines = [
        (
            "template",
            Some(aliases.join(", ")).filter(|names| !names.is_empty()),
        ),
        ("fingerprint", Some(template.fingerprint.to_string())),
        ("image", Some(template.image().to_string_lossy().into_owned())),
        ("system", document.os.clone()),
        ("disk", Some(disk)),
        ("created", Some(document.created.to_string())),
        ("made of", made_of),
        ("parent", document.parent.map(|parent| parent.to_string())),
        (
            "kernel",
            template.kernel().map(|path| path.to_string_lossy().into_owned()),
        ),
        (
            "initrd",
            template.initrd().map(|path| path.to_string_lossy().into_owned()),
        ),
        (
            "signature",
            template
                .signature()
                .map(|path| path.to_string_lossy().into_owned()),
        ),
        ("user", document.user.clone()),
        ("notes", document.notes.clone()),
    ];
    for (name, value) in lines {
        if let Some(value) = value {
            writeln!(out, "{:<12} {}", format!("{name}:"), escape(&value))?;
        }
    }
    print_settings(out, "machine", &document.machine)
}

/// Prints settings of machines as they stand in files, if there are any.
pub(in crate::commands) fn print_settings(
    out: &mut dyn Write,
    title: &str,
    settings: &Settings,
) -> io::Result<()> {
    let settings = hidden(settings).to_toml().unwrap_or_default();
    if settings.is_empty() {
        return Ok(());
    }
    writeln!(out, "{title}:")?;
    for line in settings.lines().filter(|line| !line.is_empty()) {
        writeln!(out, "    {}", escape(line))?;
    }
    Ok(())
}

/// What is known of a template, its document and what follows from it.
pub(super) fn as_json(template: &Template) -> Value {
    let mut value = json!({
        "fingerprint": template.fingerprint,
        "aliases": template.aliases,
        "image": template.image().to_string_lossy(),
    });
    let document = serde_json::to_value(TemplateDocument {
        machine: hidden(&template.document.machine),
        ..template.document.clone()
    });
    if let (Some(value), Ok(Value::Object(document))) = (value.as_object_mut(), document) {
        value.extend(document);
    }
    value
}

/// The settings, with the names of credentials alone.
pub(in crate::commands) fn hidden(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    for value in settings.credentials.values_mut() {
        "(not shown)".clone_into(value);
    }
    settings
}

/// A time to the minute.
pub(in crate::commands) fn short_time(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M").to_string()
}
