//! A chain as a tree of text: each image over the one that it is based on.

use std::io::{self, Write};

use block::chain::Chain;
use block::{ErrorKind, Result, escape};
use ops::{Cancel, HostHoles};

use super::survey::own_data;
use crate::output::human_size;

/// The lines of the tree, the active image first. Each image says how large its disk is, how much data it holds itself,
/// and how much room its files take.
pub(crate) fn tree(chain: &Chain, cancel: &Cancel) -> Result<Vec<String>> {
    let holes = HostHoles::of(chain)?;
    let layers = chain.layers().iter().enumerate();
    let lines = layers.map(|(depth, layer)| {
        let branch = match depth {
            0 => String::new(),
            _ => format!("{:1$}└─ ", "", 3 * (depth - 1)),
        };
        let mut taken = 0;
        for file in [Some(&layer.storage), layer.data_file.as_ref()]
            .into_iter()
            .flatten()
        {
            taken += file.allocated()?.unwrap_or(0);
        }
        let data = match own_data(layer, depth, &holes, cancel) {
            Ok(data) => human_size(data),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            // An image that is damaged is described nonetheless.
            Err(_) => "unknown".to_owned(),
        };
        let [size, taken] = [layer.size(), taken].map(human_size);
        let path = layer.path.to_string_lossy();
        let path = escape(&path);
        Ok(format!(
            "{branch}{path}: {}, disk {size}, own data {data}, takes {taken}",
            layer.format
        ))
    });
    lines.collect()
}

/// Prints the tree under a heading.
pub(crate) fn print_tree(out: &mut dyn Write, lines: &[String]) -> io::Result<()> {
    writeln!(out, "\nchain:")?;
    lines.iter().try_for_each(|line| writeln!(out, "    {line}"))
}
