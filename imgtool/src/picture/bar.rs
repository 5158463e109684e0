//! Bars of text: one for the disk, and one for each layer of a chain.

use std::io::{self, Write};

use block::escape;

use super::strip::{Counts, Strip};
use super::{COLOURS, Class, Survey};
use crate::output::human_size;

/// Characters of a bar.
const WIDTH: usize = 64;

/// Prints what holds data where.
pub(crate) fn print_bars(out: &mut dyn Write, survey: &Survey) -> io::Result<()> {
    let mut rows = vec![("disk".to_owned(), &survey.disk)];
    if survey.layers.len() > 1 {
        let layers = survey.layers.iter().map(|layer| {
            let name = layer.path.file_name().unwrap_or(layer.path.as_os_str());
            (escape(&name.to_string_lossy()).into_owned(), &layer.own)
        });
        rows.extend(layers);
    }
    let longest = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0)
        .min(24);
    for (name, strip) in rows {
        let name: String = name.chars().take(longest).collect();
        writeln!(out, "{name:<longest$} |{}| {}", bar(strip), strip.figures())?;
    }
    let [start, middle, end] = [0, 1, 2].map(|half| {
        let len = survey.disk.len;
        human_size(survey.part.range.start - survey.part.origin + len / 2 * half + len % 2 * (half / 2))
    });
    let half = WIDTH / 2;
    writeln!(
        out,
        "{:<longest$}  {start:<half$}{middle:<space$}{end:>6}",
        "",
        space = WIDTH - half - 6
    )?;
    if survey.left_out > 0 {
        writeln!(out, "{} more layers below", survey.left_out)?;
    }
    writeln!(
        out,
        "{:<longest$}  # all data  = more than half  - less  0 zeros  . nothing",
        ""
    )
}

fn bar(strip: &Strip) -> String {
    let cells = strip.cells.len();
    let character = |at: usize| {
        let (first, last) = (at * cells / WIDTH, ((at + 1) * cells).div_ceil(WIDTH));
        let mut counts: Counts = [0; Class::COUNT];
        for cell in &strip.cells[first..last.min(cells)] {
            counts.iter_mut().zip(cell).for_each(|(sum, count)| *sum += count);
        }
        let data: u64 = counts[..2 * COLOURS].iter().sum();
        let all: u64 = counts.iter().sum();
        match () {
            () if all == 0 => ' ',
            () if data == all => '#',
            () if data > all / 2 => '=',
            () if data > 0 => '-',
            () if counts[Class::Zero.index()] > 0 => '0',
            () => '.',
        }
    };
    (0..WIDTH).map(character).collect()
}
