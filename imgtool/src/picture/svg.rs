//! A survey as an SVG: strips with scales, and a legend with figures.
//!
//! Each class of a strip is one path, and neighbours of one height are one rectangle of it: a picture is some kilobytes
//! long, and a hundred at the worst. Colours follow the browser's light or dark mode. The figures of the legend are
//! there in bytes too, as `data-bytes`.

use std::fmt::Write as _;
use std::path::Path;

use super::strip::{Counts, Strip};
use super::{COLOURS, Class, SHOWN, Survey};
use crate::output::human_size;

/// Width of a strip, and where it starts.
const WIDTH: f64 = 960.0;
const LEFT: u32 = 24;

/// Height of a strip for the disk, for a layer and for a file.
const TALL: u32 = 64;
const LOW: u32 = 26;

/// Least height of what is there at all.
const LEAST: u32 = 3;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1f2328}.h{font-size:18px;font-weight:600}.s{font-size:14px;font-weight:600}\
.q{fill:#656d76}.t{font-size:11px;fill:#656d76}.l{stroke:#8c959f}.b{fill:#fff}.n{fill:#eaeef2;stroke:#d0d7de}\
.d0{fill:#2f74d0}.d1{fill:#e0782b}.d2{fill:#2f9e6e}.d3{fill:#8d5fd3}.d4{fill:#cf4f86}.d5{fill:#8f7346}\
.c{fill-opacity:.6}.z{fill:#afb8c1}.o{fill:#57606a}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.q,.t{fill:#9198a1}.l{stroke:#6e7681}.b{fill:#0d1117}\
.n{fill:#1c2128;stroke:#3d444d}.d0{fill:#5a9cf0}.d1{fill:#f0954f}.d2{fill:#4fc08d}.d3{fill:#b08cf0}.d4{fill:#ec78a8}\
.d5{fill:#b59a6a}.z{fill:#59626c}.o{fill:#a5aeb8}}";

/// The picture.
pub(crate) fn draw(survey: &Survey) -> String {
    let mut picture = Picture::default();
    let name = short(&survey.name);
    let part = &survey.part;
    let size = human_size(part.range.end - part.range.start);
    picture.y += 34;
    picture.text("h", 0, &format!("{name}: {size}"));
    picture.y += 34;
    picture.text("s", 0, "The disk, by guest offset");
    picture.y += 12;
    let from = part.range.start - part.origin;
    picture.strip(&survey.disk, TALL);
    picture.scale(from, survey.disk.len);
    if survey.layers.len() > 1 {
        picture.y += 28;
        picture.text("s", 0, "What each layer holds itself, by guest offset");
        for (depth, layer) in survey.layers.iter().enumerate() {
            let figures = layer.own.figures();
            let text = format!("{depth}: {} ({}): {figures}", short(&layer.path), layer.format);
            picture.y += 24;
            picture.text("q", 0, &text);
            picture.y += 7;
            picture.strip(&layer.own, LOW);
        }
        picture.scale(from, survey.disk.len);
        picture.left_out(survey.left_out);
    }
    picture.y += 28;
    picture.text("s", 0, "The files, by host offset");
    for file in survey.layers.iter().flat_map(|layer| &layer.files) {
        picture.y += 24;
        let text = format!("{}: {}", short(&file.path), human_size(file.strip.len));
        picture.text("q", 0, &text);
        picture.y += 7;
        picture.strip(&file.strip, LOW);
        picture.scale(0, file.strip.len);
    }
    picture.left_out(survey.left_out);
    picture.legend(survey);
    picture.finish(&name)
}

/// A picture in the making.
#[derive(Debug, Default)]
struct Picture {
    body: String,
    /// How far down it reaches.
    y: u32,
}

impl Picture {
    /// Adds to the body. Writing to a string does not fail.
    fn add(&mut self, arguments: std::fmt::Arguments<'_>) {
        let _ = self.body.write_fmt(arguments);
    }

    fn text(&mut self, class: &str, indent: u32, text: &str) {
        let (x, y) = (LEFT + indent, self.y);
        let text = xml(text);
        self.add(format_args!(
            "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{text}</text>\n"
        ));
    }

    fn left_out(&mut self, layers: usize) {
        if layers > 0 {
            self.y += 20;
            self.text(
                "q",
                0,
                &format!("and {layers} more layers below, of which only {SHOWN} are shown"),
            );
        }
    }

    fn strip(&mut self, strip: &Strip, height: u32) {
        let y = self.y;
        self.add(format_args!(
            "<g transform=\"translate({LEFT} {y})\" shape-rendering=\"crispEdges\">"
        ));
        self.add(format_args!(
            "<rect class=\"n\" x=\"-.5\" y=\"-.5\" width=\"961\" height=\"{}\"/>",
            height + 1
        ));
        let shares: Vec<_> = (0..strip.cells.len())
            .map(|cell| shares(strip, cell, height))
            .collect();
        for class in Class::all().filter(|class| *class != Class::Hole) {
            let path = path(&shares, class, height);
            if !path.is_empty() {
                let (style, title) = (style(class), title(class));
                let bytes = human_size(strip.total(class));
                self.add(format_args!(
                    "<path class=\"{style}\" d=\"{path}\"><title>{title}: {bytes}</title></path>"
                ));
            }
        }
        self.add(format_args!("</g>\n"));
        self.y += height;
    }

    /// Ticks at powers of two, from `from` on.
    fn scale(&mut self, from: u64, len: u64) {
        let step = 1u64 << (len / 4).max(1).ilog2();
        let y = self.y;
        let mut at = from.next_multiple_of(step);
        while at - from <= len && len > 0 {
            let x = f64::from(LEFT) + (at - from) as f64 * WIDTH / len as f64;
            let anchor = match () {
                () if at == from => "start",
                () if at - from == len => "end",
                () => "middle",
            };
            let label = human_size(at);
            self.add(format_args!(
                "<path class=\"l\" d=\"M{x:.1} {}v5\"/><text class=\"t\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{}\">{label}</text>\n",
                y + 1,
                y + 18
            ));
            let Some(next) = at.checked_add(step) else { break };
            at = next;
        }
        self.y += 22;
    }

    /// What colours mean, and how much there is of each.
    fn legend(&mut self, survey: &Survey) {
        self.y += 28;
        self.text("s", 0, "Legend");
        let one = survey.layers.len() == 1;
        for class in Class::all() {
            let layer_name = |layer: usize| match survey.layers.get(layer) {
                _ if one => String::new(),
                _ if layer + 1 == COLOURS && survey.layers.len() > COLOURS => {
                    format!(" of layer {layer} and those below")
                }
                Some(found) => format!(" of layer {layer}, {}", short(&found.path)),
                None => String::new(),
            };
            let bytes = survey.disk.total(class);
            let text = match class {
                Class::Data(layer) => format!("data{}", layer_name(layer)),
                Class::Compressed(layer) => format!("compressed data{}", layer_name(layer)),
                Class::Zero => "zeros by an image's statement, or a hole in its file".to_owned(),
                Class::Hole => "nothing: in no image, reads as zeros".to_owned(),
                Class::Other => {
                    self.entry(class, "else, in files: metadata, compressed data, room kept for zeros, what snapshots or other parts of the disk hold", None);
                    continue;
                }
            };
            let hidden = match class {
                Class::Data(layer) | Class::Compressed(layer) => survey
                    .layers
                    .get(layer)
                    .is_none_or(|found| found.own.total(class) == 0),
                _ => false,
            };
            if bytes > 0 || !hidden {
                self.entry(class, &text, Some(bytes));
            }
        }
    }

    fn entry(&mut self, class: Class, text: &str, bytes: Option<u64>) {
        self.y += 22;
        let (style, y) = (style(class), self.y);
        self.add(format_args!(
            "<rect class=\"{style}\" x=\"{LEFT}\" y=\"{}\" width=\"22\" height=\"13\"/>",
            y - 11
        ));
        let x = LEFT + 32;
        let text = xml(text);
        match bytes {
            Some(bytes) => {
                let size = human_size(bytes);
                let key = key(class);
                self.add(format_args!(
                    "<text x=\"{x}\" y=\"{y}\" data-class=\"{key}\" data-bytes=\"{bytes}\">{text}: {size}</text>\n"
                ));
            }
            None => self.add(format_args!("<text x=\"{x}\" y=\"{y}\">{text}</text>\n")),
        }
    }

    fn finish(self, name: &str) -> String {
        let (width, height) = (WIDTH as u32 + 2 * LEFT, self.y + 24);
        let name = xml(name);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             role=\"img\"><title>What of {name} is where</title><style>{STYLE}</style>\n\
             <rect class=\"b\" width=\"{width}\" height=\"{height}\"/>\n{}</svg>\n",
            self.body
        )
    }
}

/// How high each class is in a cell; the classes lie on each other, from the bottom up in the order of [`Class::all`].
fn shares(strip: &Strip, cell: usize, height: u32) -> [u32; Class::COUNT] {
    let range = strip.cell(cell);
    let len = range.end - range.start;
    let counts: &Counts = &strip.cells[cell];
    let mut heights = [0; Class::COUNT];
    for class in Class::all().filter(|class| *class != Class::Hole) {
        let count = counts[class.index()];
        if count > 0 {
            let share = u128::from(count) * u128::from(height) / u128::from(len.max(1));
            heights[class.index()] = (share as u32).clamp(LEAST, height);
        }
    }
    // What was made higher is taken from the highest.
    while heights.iter().sum::<u32>() > height {
        let highest = heights.iter_mut().max();
        *highest.expect("there is one for each class") -= 1;
    }
    heights
}

/// The outline of a class: a rectangle for each run of cells where it has the same place.
fn path(shares: &[[u32; Class::COUNT]], class: Class, height: u32) -> String {
    let place = |cell: &[u32; Class::COUNT]| {
        let below: u32 = Class::all()
            .take_while(|other| *other != class)
            .map(|other| cell[other.index()])
            .sum();
        (below, cell[class.index()])
    };
    let cells = shares.len().max(1);
    let mut path = String::new();
    let mut start = 0;
    for run in shares.chunk_by(|a, b| place(a) == place(b)) {
        let (below, high) = place(&run[0]);
        if high > 0 {
            let [x, end] = [start, start + run.len()].map(|cell| cell as f64 * WIDTH / cells as f64);
            let y = height - below - high;
            let _ = write!(
                path,
                "M{} {y}h{}v{high}h-{}z",
                number(x),
                number(end - x),
                number(end - x)
            );
        }
        start += run.len();
    }
    path
}

/// Two digits after the point, where they are needed.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn style(class: Class) -> String {
    match class {
        Class::Data(layer) => format!("d{layer}"),
        Class::Compressed(layer) => format!("d{layer} c"),
        Class::Zero => "z".to_owned(),
        Class::Hole => "n".to_owned(),
        Class::Other => "o".to_owned(),
    }
}

/// The class for programs.
fn key(class: Class) -> String {
    match class {
        Class::Data(layer) => format!("data-{layer}"),
        Class::Compressed(layer) => format!("compressed-{layer}"),
        Class::Zero => "zero".to_owned(),
        Class::Hole => "hole".to_owned(),
        Class::Other => "other".to_owned(),
    }
}

fn title(class: Class) -> String {
    match class {
        Class::Data(layer) => format!("data of layer {layer}"),
        Class::Compressed(layer) => format!("compressed data of layer {layer}"),
        Class::Zero => "zeros".to_owned(),
        Class::Hole => "nothing".to_owned(),
        Class::Other => "metadata and others".to_owned(),
    }
}

/// The last part of a path, for labels.
fn short(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

/// Text as XML has it; what XML cannot say is left out.
fn xml(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('?'),
            c if c.is_control() => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}
