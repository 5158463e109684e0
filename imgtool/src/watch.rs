//! Showing how far a job has come.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use ops::Progress;
use serde_json::json;

use crate::arguments::{ProgressMode, WatchArgs};

/// Time between two JSON lines at least.
const INTERVAL: Duration = Duration::from_millis(200);

/// Points of percentage between two lines of [`Display::Percent`].
const STEP: f64 = 1.0;

const KNOWN_LENGTH: &str =
    "{wide_bar} {percent:>3}%  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";
const UNKNOWN_LENGTH: &str = "{spinner} {binary_bytes}  {binary_bytes_per_sec}  {elapsed}";

/// Shows the progress of one job.
#[derive(Debug)]
pub(crate) struct Watch(Display);

#[derive(Debug)]
enum Display {
    Nothing,
    /// On a terminal.
    Bar(ProgressBar),
    /// As `qemu-img -p` prints it, on standard output; the last value printed.
    Percent(Mutex<f64>),
    Json(Mutex<Json>),
}

#[derive(Debug)]
struct Json {
    start: Instant,
    printed: Option<Instant>,
    last: Option<Progress>,
}

impl Watch {
    pub(crate) fn new(arguments: &WatchArgs) -> Self {
        let terminal = io::stderr().is_terminal();
        Self(match arguments.progress {
            _ if arguments.quiet => Display::Nothing,
            ProgressMode::Json => Display::Json(Mutex::new(Json {
                start: Instant::now(),
                printed: None,
                last: None,
            })),
            ProgressMode::Auto if terminal => Display::Bar(bar()),
            ProgressMode::Auto if arguments.show => {
                print_percent(0.0);
                Display::Percent(Mutex::new(0.0))
            }
            ProgressMode::Auto | ProgressMode::None => Display::Nothing,
        })
    }

    /// Takes note; shows it if there is something new to see.
    pub(crate) fn report(&self, progress: Progress) {
        match &self.0 {
            Display::Nothing => {}
            Display::Bar(bar) => {
                if progress.total == 0 {
                    bar.unset_length();
                    bar.set_style(style(UNKNOWN_LENGTH));
                } else {
                    bar.set_length(progress.total);
                }
                bar.set_position(progress.done);
            }
            Display::Percent(last) => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                let percent = percent(progress);
                if percent - *last > STEP || (percent >= 100.0 && *last < 100.0) {
                    *last = percent;
                    print_percent(percent);
                }
            }
            Display::Json(json) => {
                let mut json = json.lock().unwrap_or_else(PoisonError::into_inner);
                json.last = Some(progress);
                if json.printed.is_none_or(|printed| printed.elapsed() >= INTERVAL) {
                    json.print(progress);
                }
            }
        }
    }

    /// Clears the bar, ends the line: the job is done or has failed.
    pub(crate) fn finish(self) {
        match self.0 {
            Display::Nothing => {}
            Display::Bar(bar) => bar.finish_and_clear(),
            Display::Percent(_) => {
                let _ = writeln!(io::stdout());
            }
            Display::Json(json) => {
                let mut json = json.into_inner().unwrap_or_else(PoisonError::into_inner);
                if let Some(last) = json.last {
                    json.print(last);
                }
            }
        }
    }
}

impl Json {
    fn print(&mut self, progress: Progress) {
        let now = Instant::now();
        self.printed = Some(now);
        let seconds = now.duration_since(self.start).as_secs_f64();
        let rate = if seconds > 0.0 {
            progress.done as f64 / seconds
        } else {
            0.0
        };
        let known = progress.total > 0;
        let left =
            (known && rate > 0.0).then(|| (progress.total - progress.done.min(progress.total)) as f64 / rate);
        let line = json!({
            "done": progress.done,
            "total": progress.total,
            "percent": percent(progress),
            "bytes-per-second": rate.round() as u64,
            "seconds-left": left,
        });
        // A watcher that has gone away does not stop the job.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

fn percent(progress: Progress) -> f64 {
    match (progress.total, progress.done) {
        (0, 0) => 100.0,
        // Nobody knows how much there is.
        (0, _) => 0.0,
        (total, done) => done as f64 * 100.0 / total as f64,
    }
}

fn print_percent(percent: f64) {
    let mut out = io::stdout().lock();
    let _ = write!(out, "    ({percent:.2}/100%)\r").and_then(|()| out.flush());
}

fn bar() -> ProgressBar {
    ProgressBar::new(0).with_style(style(KNOWN_LENGTH))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
