//! qcow2: what its header says is looked at byte by byte first, so that a file is named with all that is wrong with it, and
//! then by those who read such images.

use std::ops::ControlFlow;

use block::{ErrorKind, Result, escape};
use byteorder::{BE, ByteOrder};
use qcow2::{
    AutoclearFeatures, CheckOptions, CompatibleFeatures, CompressionType, Encryption, Header,
    IncompatibleFeatures, SnapshotTable, Version,
};

use crate::Limits;
use crate::file::File;
use crate::luks;
use crate::report::{Check, Report};

/// Findings of a check that are told.
const FINDINGS: usize = 5;
/// An extension that names a data file.
const DATA_FILE: u32 = 0x4441_5441;

pub(crate) fn judge(file: &File, limits: &Limits, report: &mut Report) -> Result<()> {
    references(file, report)?;
    let header = match Header::read(&**file.storage()) {
        Ok(header) => header,
        Err(error) => return refused(error, report),
    };
    report.disk_size = Some(header.size);
    name_features(&header, report);
    if header.geometry.data_file || header.backing_name.is_some() {
        return Ok(());
    }
    report.require(
        header.size.is_multiple_of(512),
        Check::Sizes,
        format!(
            "the disk has {} bytes, and programs round that to whole sectors as they like",
            header.size
        ),
    );
    // QEMU looks at where a table would be even if there are no snapshots.
    let (table, cluster) = (header.snapshots_offset.0, header.geometry.cluster_size());
    report.require(
        table.is_multiple_of(cluster),
        Check::Structure,
        format!("there cannot be a table of snapshots at {table}"),
    );
    match qcow2::read_luks(&**file.storage(), &header) {
        Ok(Some(luks)) => luks::judge_header(&luks, report),
        Ok(None) => {}
        Err(error) => refused(error, report)?,
    }
    if let Err(error) = snapshots(file, &header, limits, report) {
        refused(error, report)?;
    }
    if let Err(error) = tables(file, &header, limits, report) {
        refused(error, report)?;
    }
    Ok(())
}

/// What a reader of such images has to say.
fn refused(error: block::Error, report: &mut Report) -> Result<()> {
    let check = match error.kind() {
        ErrorKind::Corrupt | ErrorKind::InvalidInput | ErrorKind::OutOfBounds => Check::Structure,
        ErrorKind::Unsupported => Check::Features,
        _ => return Err(error),
    };
    let already = report.problems.iter().any(|problem| problem.check == check);
    // Unknown features are told in other words already.
    if check != Check::Features || !already {
        report.problem(check, error.message().to_owned());
    }
    Ok(())
}

/// What the image would have others open, and features that may mean so.
fn references(file: &File, report: &mut Report) -> Result<()> {
    let Some(header) = file.bytes::<72>(0)? else {
        return Ok(());
    };
    let (offset, len) = (BE::read_u64(&header[8..]), BE::read_u32(&header[16..]));
    if offset != 0 && len != 0 {
        let name = file.some(offset, len.min(1023) as usize)?;
        let name = String::from_utf8_lossy(&name);
        report.problem(
            Check::References,
            format!("it has a backing file: \"{}\"", escape(&name)),
        );
    }
    if BE::read_u32(&header[4..]) < 3 {
        return Ok(());
    }
    let Some(later) = file.bytes::<32>(72)? else {
        return Ok(());
    };
    let incompatible = IncompatibleFeatures::from_bits_retain(BE::read_u64(&later));
    if incompatible.contains(IncompatibleFeatures::EXTERNAL_DATA_FILE) {
        report.problem(Check::References, "its data lies in another file");
    } else {
        extensions(file, BE::read_u32(&later[28..]), offset, report)?;
    }
    let unknown = incompatible.bits() & !IncompatibleFeatures::all().bits();
    if unknown != 0 {
        let text = format!("incompatible features that are not known: {unknown:#x}");
        report.problem(Check::Features, text);
    }
    Ok(())
}

/// Looks for the name of a data file among the extensions behind the header, as far as these can be made out.
fn extensions(file: &File, header_length: u32, names: u64, report: &mut Report) -> Result<()> {
    // The largest cluster, in which all of them must be; 256 of them are refused elsewhere.
    let end = if names == 0 { 2 << 20 } else { names };
    let mut at = u64::from(header_length);
    for _ in 0..256 {
        let Some(prefix) = file.bytes::<8>(at)?.filter(|_| at < end) else {
            break;
        };
        let len = u64::from(BE::read_u32(&prefix[4..]));
        match BE::read_u32(&prefix) {
            0 => {
                // Where the list ends nobody needs a length, and QEMU refuses one that it does not like.
                let text = format!("the extension at {at} ends the list of them, and has {len} bytes");
                report.require(len == 0, Check::Structure, text);
                break;
            }
            DATA_FILE => {
                report.problem(Check::References, "it names a data file");
                break;
            }
            _ => at += 8 + len.next_multiple_of(8),
        }
    }
    Ok(())
}

fn name_features(header: &Header, report: &mut Report) {
    let incompatible = |bit| header.incompatible.contains(bit);
    for (name, used) in [
        ("version-2", header.version == Version::V2),
        ("version-3", header.version == Version::V3),
        ("encryption-aes", header.encryption == Encryption::Aes),
        ("encryption-luks", header.encryption == Encryption::Luks),
        ("compression-zstd", header.compression == CompressionType::Zstd),
        ("extended-l2", header.geometry.extended_l2),
        (
            "lazy-refcounts",
            header.compatible.contains(CompatibleFeatures::LAZY_REFCOUNTS),
        ),
        ("dirty", incompatible(IncompatibleFeatures::DIRTY)),
        ("corrupt", incompatible(IncompatibleFeatures::CORRUPT)),
        ("snapshots", header.snapshot_count > 0),
        ("bitmaps", header.extensions.bitmaps.is_some()),
        ("unknown-extensions", !header.extensions.unknown.is_empty()),
        (
            "unknown-compatible",
            !CompatibleFeatures::all().contains(header.compatible),
        ),
        (
            "unknown-autoclear",
            !AutoclearFeatures::all().contains(header.autoclear),
        ),
    ] {
        report.feature(name, used);
    }
    if incompatible(IncompatibleFeatures::CORRUPT) {
        report.problem(Check::Structure, "it is marked corrupt");
    }
}

/// Disks of snapshots are disks that it holds, too.
fn snapshots(file: &File, header: &Header, limits: &Limits, report: &mut Report) -> Result<()> {
    let table = SnapshotTable::read(&**file.storage(), header)?;
    for snapshot in &table.snapshots {
        if snapshot.size > limits.max_disk {
            let text = format!(
                "the disk of snapshot \"{}\" has {} bytes, and {} are the limit",
                escape(&snapshot.name),
                snapshot.size,
                limits.max_disk
            );
            report.problem(Check::Sizes, text);
        }
    }
    Ok(())
}

fn tables(file: &File, header: &Header, limits: &Limits, report: &mut Report) -> Result<()> {
    let storage = &**file.storage();
    let options = CheckOptions {
        max_findings: 4 * FINDINGS,
    };
    let check = qcow2::check(storage, &options, &mut |_| ControlFlow::Continue(()))?;
    if check.corruptions > 0 || check.check_errors > 0 {
        // Leaks waste room, and are harmless.
        let wrong = check
            .findings
            .iter()
            .filter(|one| one.severity() != qcow2::Severity::Leak);
        for finding in wrong.take(FINDINGS) {
            report.problem(Check::Structure, finding.to_string());
        }
        let (corruptions, errors) = (check.corruptions, check.check_errors);
        let text =
            format!("a check finds {corruptions} corruptions, and {errors} things that cannot be checked");
        report.problem(Check::Structure, text);
    } else if let Some(shared) = qcow2::find_shared(storage, header)? {
        report.problem(Check::Structure, shared.to_string());
    }
    let data = check
        .allocated_clusters
        .saturating_mul(header.geometry.cluster_size());
    let ratio = data / file.len().max(1);
    report.require(
        ratio <= limits.max_ratio,
        Check::Sizes,
        format!(
            "each byte of the file stands for {ratio} of data, and {} are the limit",
            limits.max_ratio
        ),
    );
    let used = check.image_end_offset;
    let end = used.max(counted_end(file, header)?);
    let behind = file.data_from(used)?;
    report.feature("data-in-free-clusters", behind.is_some_and(|at| at < end));
    let behind = match behind {
        Some(at) if at < end => file.data_from(end)?,
        other => other,
    };
    if let Some(at) = behind {
        let text = format!("its refcounts end at {end}, and there is data at {at}");
        report.problem(Check::End, text);
    }
    Ok(())
}

/// Behind the last cluster that has a refcount, even if that is 0: what was in use and is free keeps its bytes, as
/// anywhere in the file.
fn counted_end(file: &File, header: &Header) -> Result<u64> {
    let cluster = header.geometry.cluster_size();
    let start = header.refcount_table_offset.0;
    let len = u64::from(header.refcount_table_clusters) * cluster;
    let mut blocks = 0;
    file.pieces(start, start.saturating_add(len), |at, piece| {
        let entries = piece
            .chunks_exact(8)
            .rposition(|entry| entry.iter().any(|byte| *byte != 0));
        if let Some(last) = entries {
            blocks = (at - start) / 8 + last as u64 + 1;
        }
        true
    })?;
    Ok(blocks.saturating_mul(cluster << header.geometry.refcount_block_bits()))
}
