//! Tables for people.

use std::io::{self, Write};

use block::{Error, escape};

use crate::failure::Failure;

/// Rows of text in columns. Without rows there is nothing to print.
#[derive(Debug)]
pub(crate) struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(heads: &[&'static str]) -> Self {
        Self {
            heads: heads.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| escape(&cell).into_owned());
        self.rows.push(cells.collect());
    }

    pub(crate) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let heads: Vec<String> = self.heads.iter().map(|head| (*head).to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&heads).chain(&self.rows).collect();
        let width = |column: usize| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.heads.len()).map(width).collect();
        for line in &lines {
            let mut text = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                text.push_str(cell);
                let pad = width - cell.chars().count() + 2;
                text.extend(std::iter::repeat_n(' ', pad));
            }
            writeln!(out, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// Tells, after a list, of what could not be listed. Gives the exit code.
pub(crate) fn tell_broken<'e>(
    out: &mut dyn Write,
    broken: impl IntoIterator<Item = &'e Error>,
) -> io::Result<u8> {
    out.flush()?;
    let mut code = 0;
    for error in broken {
        code = 1;
        // With nobody left to read it there is nothing to be done about that.
        let _ = write!(io::stderr(), "{}", Failure::from(error.clone()));
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut table = Table::new(&["NAME", "SIZE"]);
        let mut out = Vec::new();
        table.print(&mut out).unwrap();
        assert!(out.is_empty());
        table.row(["a-long-name".to_owned(), "1 B".to_owned()]);
        table.row(["b\n".to_owned(), String::new()]);
        table.print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "NAME         SIZE\na-long-name  1 B\nb\\n\n");
    }
}
