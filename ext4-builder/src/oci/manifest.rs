//! Indexes and manifests ("Image Index", "Image Manifest"): which images there are, and what they consist of.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use block::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::digest::Digest;
use super::fault::Fault;
use super::store::Store;

/// The annotation that holds an image's tag.
const TAG: &str = "org.opencontainers.image.ref.name";
/// Indexes that are gone through on the way to a manifest.
const MAX_DEPTH: usize = 8;
/// Documents that are read in search of a manifest.
const MAX_DOCUMENTS: usize = 1000;

/// What a blob is, and what its bytes must come to ("Content Descriptors").
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<Platform>,
}

impl Descriptor {
    fn tag(&self) -> Option<&str> {
        self.annotations.as_ref()?.get(TAG).map(String::as_str)
    }

    /// Whether its tag is this, or is a whole name that ends with it.
    fn is_tagged(&self, wanted: &str) -> bool {
        self.tag()
            .is_some_and(|tag| tag == wanted || tag.rsplit_once(':').is_some_and(|(_, last)| last == wanted))
    }
}

/// An operating system and a processor, as Go names them: `linux/amd64`, `linux/arm/v7`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Platform {
    /// Such as `linux`.
    pub os: String,
    /// Such as `amd64`.
    pub architecture: String,
    /// Such as `v7`.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on the processor that this runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// Whether what says that it is for this may be what is wanted: a variant is often not said.
    pub(super) fn may_be(&self, wanted: &Self) -> bool {
        let variants = self.variant.as_ref().zip(wanted.variant.as_ref());
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && variants.is_none_or(|(own, wanted)| own == wanted)
    }

    fn fits(&self, wanted: &Self) -> bool {
        let variant = wanted.variant.is_none() || self.variant == wanted.variant;
        self.os == wanted.os && self.architecture == wanted.architecture && variant
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// # Errors
    /// `InvalidInput` for what has not two or three parts.
    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => ("", "", None),
        };
        if os.is_empty() || architecture.is_empty() || variant == Some("") {
            let error = Error::invalid(format!("\"{}\" is no platform", block::escape(text)));
            return Err(error.with_hint("such as linux/amd64 or linux/arm/v7"));
        }
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// What an image consists of.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// An index or a manifest: types of media are not always said.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

enum Parsed {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// A document that is JSON.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|problem| {
        Fault::Json {
            what: what.to_owned(),
            problem: block::escape(&problem.to_string()).into_owned(),
        }
        .error()
    })
}

impl Document {
    fn sort_out(self, what: &str) -> Result<Parsed> {
        match self {
            // Who reads it as one and who reads it as the other must not see two images.
            Self {
                manifests: Some(_),
                layers: Some(_),
                ..
            }
            | Self {
                manifests: Some(_),
                config: Some(_),
                ..
            } => Err(Fault::Ambiguous(what.to_owned()).error()),
            Self {
                manifests: Some(manifests),
                ..
            } => Ok(Parsed::Index(manifests)),
            Self {
                config: Some(config),
                layers: Some(layers),
                ..
            } => Ok(Parsed::Manifest(Manifest { config, layers })),
            Self {
                fs_layers: Some(_), ..
            } => {
                let error = Error::unsupported(
                    "the image has a manifest of version 1, which has no digests of layers",
                );
                Err(error.with_hint("convert it first: skopeo copy --format oci SOURCE oci:DIRECTORY"))
            }
            _ => Err(Fault::NoManifest(what.to_owned()).error()),
        }
    }
}

/// Finds the manifest of the image with a tag, for a platform. What is the only one is taken whatever it is called and
/// for, unless that was asked for.
pub(super) fn choose(store: &Store, tag: Option<&str>, platform: Option<&Platform>) -> Result<Manifest> {
    let index = store.document("index.json", "index.json")?;
    let index = index.ok_or_else(|| {
        Fault::NoImage {
            format: "image layout",
            missing: "index.json",
        }
        .error()
    })?;
    let Parsed::Index(all) = parse::<Document>(&index, "index.json")?.sort_out("index.json")? else {
        return Err(Fault::NoManifest("index.json".to_owned()).error());
    };
    let tagged: Vec<Descriptor> = match tag {
        None => all.clone(),
        // The whole name counts before its end.
        Some(tag) if all.iter().any(|found| found.tag() == Some(tag)) => all
            .iter()
            .filter(|found| found.tag() == Some(tag))
            .cloned()
            .collect(),
        Some(tag) => all.iter().filter(|found| found.is_tagged(tag)).cloned().collect(),
    };
    if let (Some(tag), true) = (tag, tagged.is_empty()) {
        let error = Error::invalid(format!(
            "there is no image with the tag \"{}\"",
            block::escape(tag)
        ));
        return Err(error.with_hint(there_are(&all)));
    }
    let mut search = Search {
        store,
        wanted: platform,
        documents: 0,
        found: Vec::new(),
    };
    search.go_through(&tagged, 0)?;
    search.decide(&tagged)
}

fn there_are(all: &[Descriptor]) -> String {
    let tags: Vec<String> = all
        .iter()
        .filter_map(|descriptor| Some(block::escape(descriptor.tag()?).into_owned()))
        .collect();
    match tags.len() {
        0 => "none of the images there has a tag: leave it out".to_owned(),
        _ => format!("there are: {}", tags.join(", ")),
    }
}

struct Search<'a> {
    store: &'a Store,
    wanted: Option<&'a Platform>,
    documents: usize,
    /// With the platforms that indexes say they are for.
    found: Vec<(Option<Platform>, Descriptor, Manifest)>,
}

impl Search<'_> {
    fn go_through(&mut self, descriptors: &[Descriptor], depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Fault::Nested(MAX_DEPTH).error());
        }
        for descriptor in descriptors {
            // What is for another platform need not be there: images are often fetched for one only.
            if let (Some(is_for), true) = (&descriptor.platform, descriptors.len() > 1)
                && !is_for.fits(self.wanted.unwrap_or(&Platform::host()))
            {
                continue;
            }
            self.documents += 1;
            if self.documents > MAX_DOCUMENTS {
                return Err(Fault::TooMany {
                    what: "documents on the way to a manifest",
                    limit: MAX_DOCUMENTS,
                }
                .error());
            }
            let bytes = self
                .store
                .verified(&descriptor.digest, descriptor.size, "manifest")?;
            let what = format!("manifest {}", descriptor.digest);
            match parse::<Document>(&bytes, &what)?.sort_out(&what)? {
                Parsed::Index(more) => self.go_through(&more, depth + 1)?,
                Parsed::Manifest(manifest) => {
                    self.found
                        .push((descriptor.platform.clone(), descriptor.clone(), manifest));
                }
            }
        }
        Ok(())
    }

    fn decide(mut self, tagged: &[Descriptor]) -> Result<Manifest> {
        let host = Platform::host();
        let wanted = self.wanted.unwrap_or(&host);
        if self.wanted.is_some() {
            self.found
                .retain(|(is_for, ..)| is_for.as_ref().is_none_or(|is_for| is_for.fits(wanted)));
        }
        // Two tags of one image are no choice to make.
        self.found.dedup_by(|a, b| a.1.digest == b.1.digest);
        let mut left = self.found.into_iter();
        match (left.next(), left.next()) {
            (Some((_, _, only)), None) => Ok(only),
            // Variants: the first is what fits best, as makers of indexes order them.
            (Some((Some(_), _, first)), Some((Some(_), ..))) if tagged.len() == 1 => Ok(first),
            (Some(_), Some(_)) => {
                let error = Error::invalid("there are several images, and none of them is named");
                Err(error.with_hint(there_are(tagged)))
            }
            (None, _) => {
                let error = Error::invalid(format!("there is no image for {wanted}"));
                Err(error.with_hint("choose another platform, such as linux/amd64"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_two_or_three_words() {
        for text in ["linux/amd64", "linux/arm/v7"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d", "a/b/"] {
            text.parse::<Platform>().unwrap_err();
        }
        let v7: Platform = "linux/arm/v7".parse().unwrap();
        assert!(v7.fits(&"linux/arm".parse().unwrap()));
        assert!(!v7.fits(&"linux/arm/v6".parse().unwrap()));
        assert!(!v7.fits(&Platform::host()));
        let arm: Platform = "linux/arm".parse().unwrap();
        assert!(arm.may_be(&v7) && v7.may_be(&arm) && v7.may_be(&v7));
        assert!(!v7.may_be(&"linux/arm/v6".parse().unwrap()) && !arm.may_be(&"linux/arm64".parse().unwrap()));
    }

    #[test]
    fn a_document_is_one_thing() {
        let descriptor = format!(r#"{{"digest": "sha256:{}", "size": 1}}"#, "0".repeat(64));
        let sort = |text: &str| {
            let text = text.replace('D', &descriptor);
            parse::<Document>(text.as_bytes(), "it").and_then(|document| document.sort_out("it"))
        };
        assert!(matches!(sort(r#"{"manifests": [D]}"#), Ok(Parsed::Index(_))));
        assert!(matches!(
            sort(r#"{"config": D, "layers": []}"#),
            Ok(Parsed::Manifest(_))
        ));
        for (text, says) in [
            (r#"{"manifests": [], "layers": []}"#, "both"),
            (r#"{"manifests": [], "config": D}"#, "both"),
            (r#"{"layers": []}"#, "neither"),
            (r#"{"fsLayers": []}"#, "version 1"),
            (
                r#"{"manifests": [{"digest": "sha256:..", "size": 1}]}"#,
                "no digest",
            ),
            (r#"{"manifests": [{"digest": D.digest, "size": -1}]}"#, "no JSON"),
            ("[]", "no JSON"),
        ] {
            let error = sort(text).err().unwrap();
            assert!(error.to_string().contains(says), "{text}: {error}");
        }
    }
}
