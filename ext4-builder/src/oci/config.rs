//! An image's configuration ("Image Configuration"): how what is in it is meant to be run, and what its layers come to.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::digest::Digest;

/// How what is in an image is meant to be run. It is written as JSON with the names that the image specification has.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all(serialize = "PascalCase"))]
pub struct Config {
    /// The user, and the group after a colon: names or numbers.
    #[serde(alias = "User", default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// The environment: `NAME=VALUE`.
    #[serde(alias = "Env", default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// What is run, with its first arguments.
    #[serde(alias = "Entrypoint", default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// What is run, or the arguments that follow those of the entrypoint.
    #[serde(alias = "Cmd", default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Where it is run.
    #[serde(alias = "WorkingDir", default, skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// What its makers have to say about it.
    #[serde(alias = "Labels", default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// The signal that asks it to stop.
    #[serde(alias = "StopSignal", default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Ports that it listens on, such as `80/tcp`.
    #[serde(
        alias = "ExposedPorts",
        default,
        deserialize_with = "keys",
        serialize_with = "object"
    )]
    pub exposed_ports: BTreeSet<String>,
    /// Directories whose content is meant to outlive it.
    #[serde(
        alias = "Volumes",
        default,
        deserialize_with = "keys",
        serialize_with = "object"
    )]
    pub volumes: BTreeSet<String>,
}

/// The document that a manifest calls its configuration.
#[derive(Debug, Deserialize)]
pub(super) struct Document {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) variant: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) config: Config,
    pub(super) rootfs: RootFilesystem,
}

#[derive(Debug, Deserialize)]
pub(super) struct RootFilesystem {
    /// What each layer comes to without its compression.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) diff_ids: Vec<Digest>,
}

/// Go writes `null` for what is empty.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Go writes a set as an object whose values are empty.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    let map: Map<String, Value> = or_default(deserializer)?;
    Ok(map.into_iter().map(|(key, _)| key).collect())
}

fn object<S: Serializer>(set: &BTreeSet<String>, serializer: S) -> Result<S::Ok, S::Error> {
    let empty = Map::new();
    serializer.collect_map(set.iter().map(|key| (key, &empty)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_empty_and_what_is_unknown_is_passed_over() {
        let document: Document = serde_json::from_str(
            r#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": null},
                "config": {"Env": null, "Cmd": ["sh"], "Entrypoint": null, "Labels": null, "OnBuild": ["x"],
                           "ExposedPorts": {"80/tcp": {}}, "User": "nobody:1"}, "history": [{}]}"#,
        )
        .unwrap();
        let config = document.config;
        assert_eq!(config.cmd, Some(vec!["sh".to_owned()]));
        assert_eq!((config.entrypoint.clone(), config.env.len()), (None, 0));
        assert_eq!(
            serde_json::to_string(&config).unwrap(),
            r#"{"User":"nobody:1","Env":[],"Cmd":["sh"],"Labels":{},"ExposedPorts":{"80/tcp":{}},"Volumes":{}}"#
        );
        let none: Document = serde_json::from_str(r#"{"config": null, "rootfs": {}}"#).unwrap();
        assert_eq!(none.config, Config::default());
        serde_json::from_str::<Document>("{}").unwrap_err();
    }
}
