//! An image: its configuration and its layers, wherever they are stored.

use std::sync::Arc;

use block::{Error, Result};
use serde::Deserialize;

use super::config::{self, Config};
use super::digest::{Digest, Ended, Verified};
use super::fault::Fault;
use super::manifest::{self, Platform, choose};
use super::reference::{Reference, Storing};
use super::store::Store;
use crate::tar::{self, Archive, Decompressed, decompress};

/// Layers that an image may have.
const MAX_LAYERS: usize = 10_000;

/// An image whose manifest and configuration are known and verified. Its layers are, as they are
/// [read](Self::changes).
#[derive(Debug)]
pub struct Image {
    store: Arc<Store>,
    reference: Reference,
    platform: Platform,
    config: Config,
    document: Vec<u8>,
    layers: Vec<Layer>,
}

/// A layer, where it is and what it must come to.
#[derive(Clone, Debug)]
struct Layer {
    /// In the store.
    name: String,
    /// As it is stored. A Docker archive has no such digest.
    blob: Option<(Digest, u64)>,
    /// Without its compression.
    content: Digest,
}

/// A layer that is being read.
pub(super) type LayerArchive = Archive<Verified<Decompressed>>;

impl Image {
    /// Finds an image, and reads all of it but its layers. Where there are images for several platforms and none is asked
    /// for, that for Linux on this processor is taken; one that is for another than was asked for is none.
    ///
    /// # Errors
    /// `InvalidInput` where there is no such image; `Corrupt` for what is not what its digest says; `Unsupported`; `Io`.
    pub fn open(reference: &Reference, platform: Option<&Platform>) -> Result<Self> {
        let open = || match reference.storing {
            Storing::Layout => of_layout(Store::directory(&reference.path)?, reference, platform),
            Storing::LayoutArchive => of_layout(Store::archive(&reference.path)?, reference, platform),
            Storing::DockerArchive => of_docker(Store::archive(&reference.path)?, reference),
        };
        let image = open().and_then(|image| match platform {
            Some(wanted) => image.check_platform(wanted).map(|()| image),
            None => Ok(image),
        });
        image.map_err(|error: Error| error.with_path(&reference.path))
    }

    /// Fails for an image that says itself that it is for another platform, whoever says what.
    fn check_platform(&self, wanted: &Platform) -> Result<()> {
        if self.platform.may_be(wanted) {
            return Ok(());
        }
        let Platform { os, architecture, .. } = &self.platform;
        let message = if os.is_empty() || architecture.is_empty() {
            format!("the image does not say what it is for, and is to be for {wanted}")
        } else {
            let is_for = self.platform.to_string();
            format!(
                "the image is for {}, and not for {wanted}",
                block::escape(&is_for)
            )
        };
        Err(Error::invalid(message)
            .with_hint("name another image, or ask for no platform to take it as it is"))
    }

    /// What it was named.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// What it is for.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// How what is in it is meant to be run.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The whole document that its configuration is part of, as it was stored: JSON.
    pub fn document(&self) -> &[u8] {
        &self.document
    }

    /// How many layers it has.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Bytes of all layers, as they are stored; 0 where that is not said.
    pub fn stored_size(&self) -> u64 {
        let sizes = self.layers.iter().filter_map(|layer| layer.blob.as_ref());
        sizes.fold(0, |sum, (_, size)| sum.saturating_add(*size))
    }

    /// Opens a layer. It was what it should be once both have ended.
    pub(super) fn open_layer(&self, index: usize) -> Result<(LayerArchive, [Ended; 2])> {
        let layer = &self.layers[index];
        let what = self.layer_name(index);
        let (blob, len) = self
            .store
            .open(&layer.name)?
            .ok_or_else(|| Fault::Missing(what.clone()).error())?;
        // Without a digest of its own, what is in it is verified all the same.
        let (archive, stored) = match &layer.blob {
            Some((_, size)) if *size != len => {
                return Err(Fault::Size {
                    what,
                    stated: *size,
                    found: len,
                }
                .error());
            }
            Some((digest, size)) if *digest != layer.content => {
                let input = Verified::new(blob, what.clone(), digest.clone(), Some(*size));
                let ended = input.ended();
                (decompress(input)?, Some(ended))
            }
            _ => (decompress(blob)?, None),
        };
        let content = Verified::new(archive, what, layer.content.clone(), None);
        let ended = content.ended();
        let options = tar::Options {
            // Its digest shows that it is whole.
            end_mark_optional: true,
            ..tar::Options::default()
        };
        let stored = stored.unwrap_or_else(|| ended.clone());
        Ok((Archive::new(content, options), [ended, stored]))
    }

    /// What messages call a layer.
    pub(super) fn layer_name(&self, index: usize) -> String {
        let layer = &self.layers[index];
        let digest = layer.blob.as_ref().map_or(&layer.content, |(digest, _)| digest);
        format!("layer {} of {} ({digest})", index + 1, self.layers.len())
    }
}

fn of_layout(store: Store, reference: &Reference, platform: Option<&Platform>) -> Result<Image> {
    let layout = store.document("oci-layout", "oci-layout")?.ok_or_else(|| {
        Fault::NoImage {
            format: "image layout",
            missing: "oci-layout",
        }
        .error()
    })?;
    let Layout { version } = manifest::parse(&layout, "oci-layout")?;
    if version.split('.').next() != Some("1") {
        let version = block::escape(&version).into_owned();
        return Err(Error::unsupported(format!(
            "image layouts of version \"{version}\" are not known"
        )));
    }
    let manifest = choose(&store, reference.tag.as_deref(), platform)?;
    let document = store.verified(&manifest.config.digest, manifest.config.size, "configuration")?;
    let mut stored = Vec::new();
    for layer in &manifest.layers {
        check_type(&layer.media_type)?;
        stored.push((layer.digest.path(), Some((layer.digest.clone(), layer.size))));
    }
    assemble(store, reference, document, stored)
}

#[derive(Debug, Deserialize)]
struct Layout {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

/// Fails for what is no layer, such as a signature, and for what cannot be read, such as an encrypted one. How a layer
/// is compressed is found out from itself.
fn check_type(media_type: &str) -> Result<()> {
    let kind = media_type.split('+').next().unwrap_or_default();
    let kind = kind
        .strip_suffix(".gzip")
        .or(kind.strip_suffix(".zstd"))
        .unwrap_or(kind);
    let known = matches!(
        kind,
        "" | "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
    );
    if !known || media_type.ends_with("+encrypted") {
        return Err(Fault::LayerType(block::escape(media_type).into_owned()).error());
    }
    Ok(())
}

/// An image in the `manifest.json` of a Docker archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

fn of_docker(store: Store, reference: &Reference) -> Result<Image> {
    let list = store.document("manifest.json", "manifest.json")?.ok_or_else(|| {
        Fault::NoImage {
            format: "archive of docker save",
            missing: "manifest.json",
        }
        .error()
    })?;
    let images: Vec<DockerImage> = manifest::parse(&list, "manifest.json")?;
    let tags = |image: &DockerImage| image.repo_tags.clone().unwrap_or_default();
    let all: Vec<String> = images.iter().flat_map(tags).collect();
    let hint = format!("there are: {}", block::escape(&all.join(", ")));
    let mut chosen = images.into_iter().filter(|image| {
        let is_tagged = |tag: &String| {
            tags(image)
                .iter()
                .any(|found| found == tag || found.ends_with(&format!("/{tag}")))
        };
        reference.tag.as_ref().is_none_or(is_tagged)
    });
    let image = match (chosen.next(), chosen.next(), &reference.tag) {
        (Some(only), None, _) => only,
        (Some(_), Some(_), _) => {
            return Err(
                Error::invalid("there are several images, and none of them is named").with_hint(hint),
            );
        }
        (None, _, Some(tag)) => {
            let tag = block::escape(tag).into_owned();
            return Err(Error::invalid(format!("there is no image called \"{tag}\"")).with_hint(hint));
        }
        (None, _, None) => return Err(Fault::Missing("every image".to_owned()).error()),
    };
    let what = "the configuration";
    let document = store.document(&image.config, what)?;
    let document = document.ok_or_else(|| Fault::Missing(what.to_owned()).error())?;
    // Its name is what it comes to, in every archive of docker save.
    if let Some(digest) = digest_in(&image.config) {
        digest.check(what, &document)?;
    }
    let layers = image.layers.unwrap_or_default().into_iter();
    let stored = layers.map(|name| (name, None)).collect();
    assemble(store, reference, document, stored)
}

/// The digest in a name such as `HEX.json` or `blobs/sha256/HEX`.
fn digest_in(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next().unwrap_or(name);
    let digits = last.strip_suffix(".json").unwrap_or(last);
    Digest::parse(&format!("sha256:{digits}")).ok()
}

fn assemble(
    store: Store,
    reference: &Reference,
    document: Vec<u8>,
    stored: Vec<(String, Option<(Digest, u64)>)>,
) -> Result<Image> {
    let parsed: config::Document = manifest::parse(&document, "the configuration")?;
    let known = parsed.rootfs.diff_ids;
    let layers = stored.len();
    if layers != known.len() {
        return Err(Fault::Layers {
            layers,
            known: known.len(),
        }
        .error());
    }
    if layers > MAX_LAYERS {
        return Err(Fault::TooMany {
            what: "layers",
            limit: MAX_LAYERS,
        }
        .error());
    }
    let layers = stored.into_iter().zip(known);
    Ok(Image {
        store: Arc::new(store),
        reference: reference.clone(),
        platform: Platform {
            os: parsed.os,
            architecture: parsed.architecture,
            variant: parsed.variant,
        },
        config: parsed.config,
        document,
        layers: layers
            .map(|((name, blob), content)| Layer { name, blob, content })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_those_that_can_be_read() {
        for media_type in [
            "",
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ] {
            check_type(media_type).unwrap();
        }
        for media_type in [
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.in-toto+json",
            "application/vnd.oci.image.config.v1+json",
        ] {
            assert_eq!(
                check_type(media_type).unwrap_err().kind(),
                block::ErrorKind::Unsupported
            );
        }
    }

    #[test]
    fn a_configuration_is_what_its_name_says() {
        let digits = "ab".repeat(32);
        for name in [
            format!("{digits}.json"),
            format!("blobs/sha256/{digits}"),
            digits.clone(),
        ] {
            assert_eq!(digest_in(&name).unwrap().to_string(), format!("sha256:{digits}"));
        }
        assert_eq!(digest_in("config.json"), None);
    }
}
