//! Partition tables as they are printed.

use std::io::{self, Write};
use std::path::Path;

use block::escape;
use raw::partition::{Finding, Partition, PartitionKind, PartitionTable, Severity};
use serde_json::{Value, json};

use super::new::ATTRIBUTES;
use crate::output::human_size;

/// For people: what the table is, and a line for each partition.
pub(super) fn print_table(out: &mut dyn Write, table: &PartitionTable) -> io::Result<()> {
    write!(out, "table: {}", table.format())?;
    write!(out, ", sectors of {} bytes", table.sector().bytes())?;
    match table {
        PartitionTable::Gpt(gpt) => writeln!(out, ", GUID {}", gpt.disk_guid())?,
        PartitionTable::Mbr(mbr) => writeln!(out, ", signature {:#010x}", mbr.disk_signature())?,
        _ => writeln!(out)?,
    }
    writeln!(
        out,
        "{:>6}  {:>9}  {:>9}  {:<16}Name",
        "Number", "Start", "Size", "Type"
    )?;
    for partition in table.partitions() {
        let [start, size] = [partition.start(), partition.len()].map(human_size);
        let (number, kind) = (partition.number, partition.kind.to_string());
        let line = format!(
            "{number:>6}  {start:>9}  {size:>9}  {kind:<15} {}",
            escape(&partition.name)
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// For people: all about one partition.
pub(crate) fn print_partition(out: &mut dyn Write, image: &Path, partition: &Partition) -> io::Result<()> {
    let size = |bytes| format!("{} ({bytes} bytes)", human_size(bytes));
    writeln!(
        out,
        "partition: {} of {}",
        partition.number,
        escape(&image.to_string_lossy())
    )?;
    if !partition.name.is_empty() {
        writeln!(out, "name: {}", escape(&partition.name))?;
    }
    match (partition.kind, partition.kind.name()) {
        (PartitionKind::Gpt(guid), Some(name)) => writeln!(out, "type: {name} ({guid})")?,
        (PartitionKind::Mbr(kind), Some(name)) => writeln!(out, "type: {name} ({kind:#04x})")?,
        (kind, None) => writeln!(out, "type: {kind}")?,
    }
    if let Some(guid) = partition.guid {
        writeln!(out, "GUID: {guid}")?;
    }
    if partition.attributes != 0 {
        writeln!(out, "attributes: {}", attributes(partition.attributes).join(", "))?;
    }
    writeln!(
        out,
        "start: {}\nvirtual size: {}",
        size(partition.start()),
        size(partition.len())
    )
}

/// Names of the bits that are set, or their numbers.
fn attributes(bits: u64) -> Vec<String> {
    let set = (0..64).filter(|bit| bits >> bit & 1 == 1);
    let name = |bit| {
        ATTRIBUTES
            .iter()
            .find(|(_, known)| *known == bit)
            .map(|(name, _)| (*name).to_owned())
    };
    set.map(|bit| name(bit).unwrap_or_else(|| format!("bit {bit}")))
        .collect()
}

pub(crate) fn partition_json(partition: &Partition) -> Value {
    let mut object = json!({
        "number": partition.number,
        "start": partition.start(),
        "size": partition.len(),
        "type": partition.kind.to_string(),
    });
    match partition.kind {
        PartitionKind::Gpt(guid) => object["type-guid"] = guid.to_string().into(),
        PartitionKind::Mbr(kind) => object["type-byte"] = kind.into(),
    }
    if let Some(guid) = partition.guid {
        object["guid"] = guid.to_string().into();
        object["name"] = partition.name.clone().into();
    }
    object["attributes"] = attributes(partition.attributes).into();
    object
}

pub(super) fn table_json(image: &Path, table: &PartitionTable) -> Value {
    let mut object = json!({
        "filename": image.to_string_lossy(),
        "table": table.format(),
        "sector-size": table.sector().bytes(),
    });
    match table {
        PartitionTable::Gpt(gpt) => {
            object["guid"] = gpt.disk_guid().to_string().into();
            object["read-from"] = gpt.read_from().to_string().into();
        }
        PartitionTable::Mbr(mbr) => object["signature"] = mbr.disk_signature().into(),
        _ => {}
    }
    object["partitions"] = table.partitions().iter().map(partition_json).collect();
    object["findings"] = findings_json(table);
    object
}

pub(super) fn findings_json(table: &PartitionTable) -> Value {
    let object = |finding: &Finding| json!({ "severity": severity(finding), "message": finding.to_string() });
    table.findings().iter().map(object).collect()
}

pub(super) fn severity(finding: &Finding) -> &'static str {
    match finding.severity() {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

/// Where the partitions were read from.
pub(super) fn origin(table: &PartitionTable) -> String {
    match table {
        PartitionTable::Gpt(gpt) => format!("{} GPT", gpt.read_from()),
        _ => "MBR".to_owned(),
    }
}
