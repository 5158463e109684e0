//! What is written last: directories and tables, which nobody reads yet, and then the boot record that makes them a
//! filesystem. Its own sector comes last of all, after a sync, so that no power cut leaves one over something unfinished.

use block::Result;

use crate::boot_sector::{self, BACKUP, BOOT_RECORD};
use crate::builder::{Builder, Child, Content, Directory, Summary};
use crate::directory_entry::{self, Entry, Kind};
use crate::layout::{FIRST_CLUSTER, Layout};
use crate::short_name::ShortName;
use crate::table::TableWriter;
use crate::{alias, fs_info, long_name};

pub(crate) fn finish(mut builder: Builder<'_>) -> Result<Summary> {
    let files_end = builder.next;
    let chains = place_directories(&mut builder);
    write_directories(&builder, &chains)?;
    write_table(&builder, files_end, &chains)?;
    let layout = &builder.layout;
    let free = layout.end() - builder.next;
    builder.disk.sync()?;
    write_boot_record(&builder, free)?;
    Ok(Summary {
        cluster_size: layout.cluster_size(),
        clusters: layout.clusters,
        free_clusters: free,
    })
}

/// Clusters of a directory: the root's first one is away from the others.
#[derive(Clone, Copy, Debug)]
struct Chain {
    first: u32,
    /// Where the others begin, and how many there are; for all but the root, the first one among them.
    start: u32,
    len: u32,
}

/// Gives every directory its clusters. The builder has counted that there is room.
fn place_directories(builder: &mut Builder<'_>) -> Vec<Chain> {
    let mut next = builder.next;
    let place = |(index, directory): (usize, &Directory)| {
        let bytes = (directory.entries * size_of::<Entry>()) as u64;
        let clusters = builder.layout.clusters_of(bytes).max(1) as u32;
        let (first, len) = match index {
            0 => (FIRST_CLUSTER, clusters - 1),
            _ => (next, clusters),
        };
        let chain = Chain {
            first,
            start: next,
            len,
        };
        next += len;
        chain
    };
    let chains = builder.directories.iter().enumerate().map(place).collect();
    builder.next = next;
    chains
}

fn write_directories(builder: &Builder<'_>, chains: &[Chain]) -> Result<()> {
    let layout = &builder.layout;
    let cluster_size = layout.cluster_size() as usize;
    for (index, directory) in builder.directories.iter().enumerate() {
        let mut bytes = entries(builder, index, directory, chains).concat();
        bytes.resize(bytes.len().next_multiple_of(cluster_size).max(cluster_size), 0);
        let chain = chains[index];
        let apart = if chain.first == chain.start {
            0
        } else {
            cluster_size
        };
        let (first, others) = bytes.split_at(apart);
        if !first.is_empty() {
            builder.disk.write(layout.cluster(chain.first), first)?;
        }
        if !others.is_empty() {
            builder.disk.write(layout.cluster(chain.start), others)?;
        }
    }
    Ok(())
}

/// The entries of a directory, in their order.
fn entries(builder: &Builder<'_>, index: usize, directory: &Directory, chains: &[Chain]) -> Vec<Entry> {
    let mut entries = Vec::new();
    match (index, builder.label) {
        (0, None) => {}
        (0, Some(label)) => {
            let label = ShortName(label);
            entries.push(directory_entry::encode(
                label,
                Kind::Label,
                builder.options.time,
                0,
            ));
        }
        _ => {
            // For the root, whose cluster nobody has to look up, this is 0.
            let parent = match directory.parent {
                0 => 0,
                parent => chains[parent].first,
            };
            let time = directory.time;
            let dots = [
                (ShortName::DOT, chains[index].first),
                (ShortName::DOT_DOT, parent),
            ];
            entries.extend(
                dots.map(|(name, cluster)| directory_entry::encode(name, Kind::Directory, time, cluster)),
            );
        }
    }
    let names: Vec<&str> = directory
        .children
        .iter()
        .map(|child| child.name.as_str())
        .collect();
    for (child, short) in directory.children.iter().zip(alias::assign(&names)) {
        let Child { name, time, content } = child;
        if !ShortName::is_all_of(name) {
            entries.extend(long_name::entries(name, short.checksum()));
        }
        let (kind, cluster) = match *content {
            Content::Directory(index) => (Kind::Directory, chains[index].first),
            Content::File { size, cluster } => (Kind::File(size), cluster),
        };
        entries.push(directory_entry::encode(short, kind, *time, cluster));
    }
    entries
}

/// Chains lie in the table in the order in which their clusters were given: the root's first, files, directories.
fn write_table(builder: &Builder<'_>, files_end: u32, chains: &[Chain]) -> Result<()> {
    let layout: Layout = builder.layout;
    let mut table = TableWriter::new(&builder.disk, layout);
    let others = chains[0];
    table.run(1, (others.len > 0).then_some(others.start))?;
    let mut next = FIRST_CLUSTER + 1;
    for (cluster, clusters) in builder.files.iter().copied() {
        debug_assert_eq!(cluster, next, "files lie side by side");
        table.run(clusters, None)?;
        next += clusters;
    }
    debug_assert_eq!(next, files_end);
    for chain in chains {
        table.run(chain.len, None)?;
    }
    table.finish()
}

fn write_boot_record(builder: &Builder<'_>, free: u32) -> Result<()> {
    let Builder {
        disk,
        layout,
        options,
        label,
        next,
        ..
    } = builder;
    let sectors: [_; BOOT_RECORD as usize] = [
        boot_sector::encode(layout, options, *label),
        fs_info::encode(free, (free > 0).then_some(*next)),
        boot_sector::third_sector(),
    ];
    for start in [BACKUP, 0] {
        for (sector, bytes) in (start..).zip(&sectors).skip(usize::from(start == 0)) {
            disk.write(layout.sector(sector), bytes)?;
        }
    }
    disk.sync()?;
    disk.write(0, &sectors[0])?;
    disk.sync()
}
