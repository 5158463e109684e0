//! QED: a header, an L1 table and L2 tables, all of whole clusters. Little endian.

use block::Result;
use byteorder::{ByteOrder, LE};

use crate::file::{File, Places};
use crate::report::{Check, Report};

const BACKING_FILE: u64 = 1 << 0;
const NEED_CHECK: u64 = 1 << 1;
const BACKING_FORMAT_RAW: u64 = 1 << 2;
/// Entries up to this one name nothing: the cluster is not there, or full of zeros.
const ZEROS: u64 = 1;
const KNOWN: u64 = BACKING_FILE | NEED_CHECK | BACKING_FORMAT_RAW;

pub(crate) fn judge(file: &File, report: &mut Report) -> Result<()> {
    let Some(header) = file.bytes::<64>(0)? else {
        report.problem(Check::Structure, "the file ends in its header");
        return Ok(());
    };
    let field = |at: usize| u64::from(LE::read_u32(&header[at..]));
    let (cluster, table, header_clusters) = (field(4), field(8), field(12));
    let features = LE::read_u64(&header[16..]);
    let (l1, size) = (LE::read_u64(&header[40..]), LE::read_u64(&header[48..]));
    report.disk_size = Some(size);
    report.feature("dirty", features & NEED_CHECK != 0);
    if features & BACKING_FILE != 0 || field(60) != 0 {
        report.problem(Check::References, "it has a backing file");
    }
    if features & !KNOWN != 0 {
        let text = format!("unknown features: {:#x}", features & !KNOWN);
        report.problem(Check::Features, text);
    }
    let sane = cluster.is_power_of_two()
        && (1 << 12..=1 << 26).contains(&cluster)
        && table.is_power_of_two()
        && table <= 16
        && header_clusters > 0;
    let text = format!(
        "clusters of {cluster} bytes, {table} of them to a table and {header_clusters} to the header, cannot be"
    );
    if !report.require(sane, Check::Structure, text) {
        return Ok(());
    }
    report.require_inside("the header", 0, header_clusters.saturating_mul(cluster));
    let entries = table * cluster / 8;
    let covered = entries.saturating_mul(entries).saturating_mul(cluster);
    report.require(
        size.is_multiple_of(512),
        Check::Sizes,
        format!("the disk has {size} bytes, which are no whole sectors"),
    );
    report.require(
        size <= covered,
        Check::Sizes,
        format!("its tables cover {covered} bytes of {size}"),
    );
    let apart = l1.is_multiple_of(cluster) && l1 >= header_clusters.saturating_mul(cluster);
    report.require(apart, Check::Structure, format!("the L1 table cannot be at {l1}"));
    if report.require_inside("the L1 table", l1, table * cluster) {
        l2_tables(file, l1..l1 + table * cluster, cluster, table * cluster, report)?;
    }
    Ok(())
}

/// Each entry of the L1 table names a table of the same length in the file, whose entries name clusters. Nothing is named twice.
fn l2_tables(
    file: &File,
    l1: std::ops::Range<u64>,
    cluster: u64,
    table: u64,
    report: &mut Report,
) -> Result<()> {
    let mut places = Places::new(file, cluster);
    places.take(0);
    places.take_all(l1.start, table);
    let mut tables = Vec::new();
    let mut wrong = None;
    file.pieces(l1.start, l1.end, |_, piece| {
        tables.extend(
            piece
                .chunks_exact(8)
                .map(LE::read_u64)
                .filter(|entry| *entry != 0),
        );
        true
    })?;
    for start in tables {
        let end = start.saturating_add(table);
        if end > file.len() || !places.take_all(start, table) {
            let text = format!("there is no L2 table at {start}, or something else is");
            report.problem(Check::Structure, text);
            return Ok(());
        }
        file.pieces(start, end, |_, piece| {
            let mut entries = piece
                .chunks_exact(8)
                .map(LE::read_u64)
                .filter(|entry| *entry > ZEROS);
            wrong = entries.find(|entry| entry.saturating_add(cluster) > file.len() || !places.take(*entry));
            wrong.is_none()
        })?;
        if let Some(entry) = wrong {
            let text = format!("there is no cluster at {entry}, or something else is");
            report.problem(Check::Structure, text);
            return Ok(());
        }
    }
    Ok(())
}
