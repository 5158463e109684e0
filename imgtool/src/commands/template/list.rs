//! `imgtool template ls`: the templates of a store.

use std::io::Write;

use clap::Args;
use machines::store::TemplateFault;
use serde_json::{Value, json};

use super::show::{as_json, short_time};
use crate::commands::Outcome;
use crate::commands::instances::name_of;
use crate::output::{self, OutputFormat, human_size, key};
use crate::stores::StoreArgs;
use crate::table::{self, Table};

/// List templates
///
/// The state is what can be seen without reading an image: "image missing" where it is not there, "image changed" where it has another length
/// than it had, "image touched" where it was written to since, be it with the same, "kernel missing", "image unreadable", or "ok". `template verify`
/// reads all of it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool template ls
  imgtool template ls --output json")]
pub(super) struct ListArgs {
    /// How to print them
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    store: StoreArgs,
}

impl ListArgs {
    pub(super) fn run(self, out: &mut dyn Write) -> Outcome {
        let templates = self.store.open()?.templates()?;
        let away = templates.away.iter().map(|(template, _)| template);
        if self.output == OutputFormat::Json {
            let all = templates.found.iter().chain(away);
            let found = all.map(|template| {
                let mut value = as_json(template);
                value["fault"] = json!(template.fault().map(|fault| key(fault.words())));
                value
            });
            let others = templates
                .others
                .iter()
                .map(|error| json!({ "fingerprint": name_of(error), "others": true }));
            output::json(out, &found.chain(others).collect::<Value>())?;
        } else {
            let mut table = Table::new(&[
                "ALIAS",
                "FINGERPRINT",
                "STATE",
                "SYSTEM",
                "DISK",
                "IMAGE",
                "CREATED",
            ]);
            for template in templates.found.iter().chain(away) {
                let aliases: Vec<&str> = template
                    .aliases
                    .iter()
                    .map(machines::store::Alias::as_str)
                    .collect();
                let document = &template.document;
                table.row([
                    aliases.join(", "),
                    template.fingerprint.short(),
                    template.fault().map_or("ok", TemplateFault::words).to_owned(),
                    document.os.clone().unwrap_or_default(),
                    human_size(document.disk_size),
                    human_size(document.image_size),
                    short_time(document.created),
                ]);
            }
            for error in &templates.others {
                let (empty, mut fingerprint) = (String::new, name_of(error));
                fingerprint.truncate(12);
                let what = "(another user's)".to_owned();
                table.row([empty(), fingerprint, what, empty(), empty(), empty(), empty()]);
            }
            table.print(out)?;
        }
        let missing = templates.away.iter().map(|(_, error)| error);
        Ok(table::tell_broken(out, missing.chain(&templates.broken))?)
    }
}
