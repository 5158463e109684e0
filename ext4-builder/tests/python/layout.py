"""Makes an image layout with an index, and one image or more in it.

    layout.py DIRECTORY IMAGES

IMAGES is a list of (tag, platform, layers); a layer is (compression, entries), an entry (name, type, value): contents of
a file, the mode of a directory, where a link leads, the numbers of a device. With a platform, images of one tag are in an
index of their own. A layer may also be bytes, which are stored as they are."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

PREFIX = "application/vnd.oci.image."


def archive(entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, (name, kind, value) in enumerate(entries):
            entry = tarfile.TarInfo(name)
            entry.type = getattr(tarfile, kind)
            entry.mtime, entry.uid, entry.gid, entry.mode = 1_000_000_000 + number, 10, 20, 0o644
            if kind == "REGTYPE":
                entry.size = len(value)
            elif kind == "DIRTYPE":
                entry.mode = value
            elif kind in ("CHRTYPE", "BLKTYPE"):
                entry.devmajor, entry.devminor = value
            elif value is not None:
                entry.linkname = value
            tar.addfile(entry, io.BytesIO(value) if kind == "REGTYPE" else None)
    return out.getvalue()


def compress(data, how):
    if how == "gzip":
        return gzip.compress(data, mtime=0)
    if how == "zstd":
        return subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout
    return data


def main(directory, images):
    os.makedirs(f"{directory}/blobs/sha256")

    def blob(data, media_type, **more):
        digest = hashlib.sha256(data).hexdigest()
        with open(f"{directory}/blobs/sha256/{digest}", "wb") as file:
            file.write(data)
        return {"mediaType": PREFIX + media_type, "digest": f"sha256:{digest}", "size": len(data), **more}

    def document(value, media_type, **more):
        return blob(json.dumps(value).encode(), media_type, **more)

    by_tag = {}
    for tag, platform, layers in images:
        stored, contents = [], []
        for how, entries in layers:
            data = entries if isinstance(entries, bytes) else archive(entries)
            contents.append("sha256:" + hashlib.sha256(data).hexdigest())
            suffix = "+" + how if how else ""
            stored.append(blob(compress(data, how), "layer.v1.tar" + suffix))
        system, architecture = (platform or "linux/amd64").split("/")[:2]
        config = {
            "architecture": architecture,
            "os": system,
            "config": {"Env": ["A=b"], "Entrypoint": ["/bin/sh"], "Cmd": ["-c", tag], "User": "1:2", "Labels": {"x": "y"}},
            "rootfs": {"type": "layers", "diff_ids": contents},
        }
        manifest = {"schemaVersion": 2, "config": document(config, "config.v1+json"), "layers": stored}
        more = {"platform": {"os": system, "architecture": architecture}} if platform else {}
        by_tag.setdefault(tag, []).append(document(manifest, "manifest.v1+json", **more))
    listed = []
    for tag, descriptors in by_tag.items():
        if "platform" in descriptors[0]:
            index = {"schemaVersion": 2, "manifests": descriptors}
            descriptors = [document(index, "index.v1+json")]
        annotations = {"org.opencontainers.image.ref.name": tag}
        listed += [{**descriptor, "annotations": annotations} for descriptor in descriptors]
    for name, value in (
        ("index.json", {"schemaVersion": 2, "manifests": listed}),
        ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
    ):
        with open(f"{directory}/{name}", "w", encoding="ascii") as file:
            json.dump(value, file)


if __name__ == "__main__":
    main(sys.argv[1], eval(sys.argv[2]))
