//! `imgtool template ls`: the templates of a store.

use std::io::Write;

use clap::Args;
use serde_json::{Value, json};

use super::show::{as_json, short_time};
use crate::commands::Outcome;
use crate::commands::instances::name_of;
use crate::output::{self, OutputFormat, human_size};
use crate::stores::StoreArgs;
use crate::table::{self, Table};

/// List templates
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
        if self.output == OutputFormat::Json {
            let found = templates.found.iter().map(as_json);
            let others = templates
                .others
                .iter()
                .map(|error| json!({ "fingerprint": name_of(error), "others": true }));
            output::json(out, &found.chain(others).collect::<Value>())?;
        } else {
            let mut table = Table::new(&["ALIAS", "FINGERPRINT", "SYSTEM", "DISK", "IMAGE", "CREATED"]);
            for template in &templates.found {
                let aliases: Vec<&str> = template
                    .aliases
                    .iter()
                    .map(machines::store::Alias::as_str)
                    .collect();
                let document = &template.document;
                table.row([
                    aliases.join(", "),
                    template.fingerprint.short(),
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
                table.row([empty(), fingerprint, what, empty(), empty(), empty()]);
            }
            table.print(out)?;
        }
        Ok(table::tell_broken(out, &templates.broken)?)
    }
}
