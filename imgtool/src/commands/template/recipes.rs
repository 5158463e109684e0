//! `imgtool template recipes`: what recipes come with the program.

use std::io::Write;

use clap::Args;
use machines::recipe::{Recipe, shipped, shipped_named};
use serde_json::json;

use crate::commands::Outcome;
use crate::output::{self, OutputFormat};

/// List the recipes that come with the program
///
/// Their names can be given to imgtool template build, and in recipes of your own as what those extend.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool template recipes
  imgtool template recipes --show tiny")]
pub(super) struct RecipesArgs {
    /// Print the text of one
    #[arg(long, value_name = "NAME")]
    show: Option<String>,
    /// How to print them
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
}

impl RecipesArgs {
    pub(super) fn run(self, out: &mut dyn Write) -> Outcome {
        if let Some(name) = &self.show {
            out.write_all(shipped_named(name)?.text.as_bytes())?;
            return Ok(0);
        }
        let mut listed = Vec::new();
        for one in shipped() {
            let description = Recipe::load_shipped(one)?.description.unwrap_or_default();
            listed.push((one.name, description));
        }
        if self.output == OutputFormat::Json {
            let value: Vec<_> = listed
                .iter()
                .map(|(name, description)| json!({ "name": name, "description": description }))
                .collect();
            output::json(out, &json!(value))?;
            return Ok(0);
        }
        for (name, description) in listed {
            writeln!(out, "{name:<16}  {description}")?;
        }
        Ok(0)
    }
}
