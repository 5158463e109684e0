//! Container images: an image layout ("OCI Image Layout Specification", version 1.0) in a tar archive, of one layer.
//!
//! A blob is named by its digest, which is known when it is whole: the layer is written where it is to be, and its header
//! afterwards. The layer is compressed by gzip, which all programs read.

use std::fmt::Write as _;
use std::io::{self, Write};

use block::{Error, ErrorKind, Result, Storage, escape};
use ext4_reader::Filesystem;
use flate2::Compression;
use flate2::write::GzEncoder;
use ops::Control;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::tarball::{Member, Tarball};
use crate::Architecture;
use crate::archive::write_tar_if;
use crate::store::Template;

/// The label that has what is known of a template: the document that a store has.
pub(crate) const LABEL: &str = "imgtool.template";

/// Bytes that are hashed on their way.
struct Hashed<W> {
    to: W,
    hash: Sha256,
}

impl<W> Hashed<W> {
    fn new(to: W) -> Self {
        let hash = Sha256::new();
        Self { to, hash }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.to.write(bytes)?;
        self.hash.update(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Writes the image, which has no file called as if it marked a removed one; gives how many sockets were left out.
pub(super) fn write(
    template: &Template,
    filesystem: &Filesystem,
    storage: &dyn Storage,
    control: &Control<'_>,
) -> Result<u64> {
    let document = &template.document;
    let mut tarball = Tarball::new(storage, document.created.as_second());
    tarball.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let member = tarball.member();
    let (member, layer, contents, sockets) = write_layer(filesystem, member, control)?;
    let layer_len = member.end - member.start;
    tarball.end(&path(&layer), &member)?;
    let architecture = match document.machine.architecture.unwrap_or_default() {
        Architecture::X86_64 => "amd64",
        Architecture::Aarch64 => "arm64",
    };
    let created = document.created.to_string();
    let mut labels = json!({ LABEL: document.without_credentials().to_toml()? });
    let mut annotations = json!({
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.title": template.name(),
    });
    if let Some(notes) = &document.notes {
        labels["org.opencontainers.image.description"] = json!(notes);
        annotations["org.opencontainers.image.description"] = json!(notes);
    }
    let made_of = document.provenance.as_ref().and_then(|made| made.source.clone());
    let config = json!({
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": { "Labels": labels },
        "rootfs": { "type": "layers", "diff_ids": [digest(&contents)] },
        "history": [{
            "created": created,
            "created_by": "imgtool template export --format oci",
            "comment": made_of.unwrap_or_default(),
        }],
    });
    let config = blob(&mut tarball, &config, "application/vnd.oci.image.config.v1+json")?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": config,
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": digest(&layer),
            "size": layer_len,
        }],
        "annotations": annotations,
    });
    let mut manifest = blob(&mut tarball, &manifest, manifest_type)?;
    manifest["platform"] = json!({ "architecture": architecture, "os": "linux" });
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": template.name() });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    tarball.file("index.json", index.to_string().as_bytes())?;
    tarball.finish()?;
    Ok(sockets)
}

/// Fails for a file that is none in a layer: one that is called so marks a file of the layers below, which is removed
/// ("Image Layer Filesystem Changeset", "Whiteouts").
fn refuse_whiteout(directory: &[u8], name: &[u8]) -> Result<()> {
    if !name.starts_with(b".wh.") {
        return Ok(());
    }
    let path = String::from_utf8_lossy(&[directory, name].concat())[1..].to_owned();
    let message = format!(
        "a container image cannot have {}: names that start with .wh. mark what a layer removes",
        escape(&path)
    );
    Err(Error::unsupported(message)
        .with_hint("rename it in a clone and publish that, or export another form"))
}

/// Writes the layer. Gives its digest, and that of what it is without its compression.
fn write_layer<'s>(
    filesystem: &Filesystem,
    member: Member<'s>,
    control: &Control<'_>,
) -> Result<(Member<'s>, String, String, u64)> {
    let io = |error: io::Error| {
        let own = |error| Error::new(ErrorKind::Io, "write the layer").with_source(error);
        error.downcast::<Error>().unwrap_or_else(own)
    };
    let compressed = Hashed::new(member);
    let mut contents = Hashed::new(GzEncoder::new(compressed, Compression::default()));
    let mut sink = |bytes: &[u8]| contents.write_all(bytes).map_err(io);
    let sockets = write_tar_if(&refuse_whiteout, filesystem, &mut sink, control)?;
    let Hashed { to: encoder, hash } = contents;
    let compressed = encoder.finish().map_err(io)?;
    let layer = hexadecimal(&compressed.hash.finalize());
    Ok((compressed.to, layer, hexadecimal(&hash.finalize()), sockets))
}

/// Adds a document as a blob; gives its descriptor.
fn blob(tarball: &mut Tarball<'_>, document: &Value, media_type: &str) -> Result<Value> {
    let bytes = document.to_string().into_bytes();
    let hash = hexadecimal(&Sha256::digest(&bytes));
    tarball.file(&path(&hash), &bytes)?;
    Ok(json!({ "mediaType": media_type, "digest": digest(&hash), "size": bytes.len() }))
}

fn path(hash: &str) -> String {
    format!("blobs/sha256/{hash}")
}

fn digest(hash: &str) -> String {
    format!("sha256:{hash}")
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
