//! How a container image is meant to be run, kept beside the filesystem that is made of it.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use block::{Error, Result};
use clap::Args;
use ext4_builder::oci;
use ext4_builder::source::Source;
use ops::Cancel;
use serde_json::{Value, json};

use crate::output;
use crate::target::{Making, TargetFile};

/// What only matters for container images.
#[derive(Clone, Debug, Args)]
pub(super) struct ContainerArgs {
    /// Take the container image for this, where there are several [default: Linux on this processor]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(super) platform: Option<String>,
    /// Where to keep as JSON how a container image is meant to be run, or none [default: beside a new image, as its
    /// name with .json at the end]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The file in the making.
pub(super) struct RunConfig(TargetFile);

impl ContainerArgs {
    /// Makes ready to keep what `source` says, if it says anything and somebody wants it.
    pub(super) fn keep(&self, source: &Source, new_image: Option<&Path>) -> Result<Option<RunConfig>> {
        let Some(image) = source.image() else {
            return match (&self.platform, &self.config) {
                (None, None) => Ok(None),
                _ => Err(Error::invalid("--platform and --config are for container images")
                    .with_hint("such are named oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE")),
            };
        };
        let beside = new_image.map(|path| {
            let mut name = path.as_os_str().to_owned();
            name.push(".json");
            PathBuf::from(name)
        });
        let path = match self.config.clone().or(beside) {
            Some(path) if path != Path::new("none") => path,
            _ => return Ok(None),
        };
        check_replaceable(&path)?;
        let target = TargetFile::new(&path, Making::default())?;
        let mut bytes = Vec::new();
        // Writing to memory does not fail.
        let _ = output::json(&mut bytes, &document(image));
        target.storage().write_all_at(&bytes, 0)?;
        Ok(Some(RunConfig(target)))
    }
}

impl RunConfig {
    /// Gives the file its name.
    pub(super) fn finish(self) -> Result<()> {
        self.0.finish(&Cancel::new())
    }
}

fn document(image: &oci::Image) -> Value {
    json!({
        "image": image.reference().to_string(),
        "platform": image.platform().to_string(),
        "config": image.config(),
    })
}

/// Fails for a file that is none of these: it may be anything, and would be lost.
fn check_replaceable(path: &Path) -> Result<()> {
    const ENOUGH: u64 = 16 << 20;
    let refuse = || {
        let error = Error::invalid("it exists, and is not how a container image is run").with_path(path);
        Err(error.with_hint("name another file with --config, or none"))
    };
    match fs::metadata(path) {
        Err(_) => return Ok(()),
        Ok(found) if !found.is_file() => return refuse(),
        Ok(found) if found.len() == 0 => return Ok(()),
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(ENOUGH).read_to_end(&mut bytes));
    let found: Option<Value> = read.ok().and_then(|_| serde_json::from_slice(&bytes).ok());
    let is_ours = |value: &Value| {
        ["image", "platform", "config"]
            .iter()
            .all(|key| value.get(key).is_some())
    };
    match found {
        Some(value) if is_ours(&value) => Ok(()),
        _ => refuse(),
    }
}
