//! Options that say how QEMU's own engine handles a qcow2 image: what it keeps in memory, what it looks at before it writes, what it gives
//! back. They change nothing here, and what they say has to be something that QEMU takes all the same.

use qcow2::{Header, Version};

use super::super::refusal::Refusal;
use super::NodeOptions;
use super::common::{number, size, switch};

/// Parts of an image that an overlap check may be about.
const OVERLAPS: [&str; 9] = [
    "main-header",
    "active-l1",
    "active-l2",
    "refcount-table",
    "refcount-block",
    "snapshot-table",
    "inactive-l1",
    "inactive-l2",
    "bitmap-directory",
];

/// Several of them at once.
const TEMPLATES: [&str; 4] = ["none", "constant", "cached", "all"];

/// Takes all of them. `header` is that of the image, if it can be read.
pub(in super::super) fn take(options: &mut NodeOptions, header: Option<&Header>) -> Result<(), Refusal> {
    let lazy = switch(options, "lazy-refcounts")?;
    for discarded in ["request", "snapshot", "other"] {
        switch(options, &format!("pass-discard-{discarded}"))?;
    }
    let no_unref = switch(options, "discard-no-unref")?;
    for part in OVERLAPS {
        switch(options, &format!("overlap-check.{part}"))?;
    }
    Caches::take(options)?.judge(header)?;
    let interval = number(options, "cache-clean-interval")?;
    if interval.is_some_and(|interval| interval > u64::from(u32::MAX)) {
        return Err(Refusal::new("Cache clean interval too big"));
    }
    let old = header.is_some_and(|header| header.version < Version::V3);
    if lazy && old {
        return Err(Refusal::new(
            "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level",
        ));
    }
    overlaps(options)?;
    if no_unref && old {
        return Err(Refusal::new(
            "discard-no-unref is only supported since qcow2 version 3",
        ));
    }
    Ok(())
}

fn overlaps(options: &mut NodeOptions) -> Result<(), Refusal> {
    let (all, template) = (
        options.take("overlap-check"),
        options.take("overlap-check.template"),
    );
    if let (Some(all), Some(template)) = (&all, &template)
        && all != template
    {
        return Err(Refusal::new(format!(
            "Conflicting values for qcow2 options 'overlap-check' ('{all}') and 'overlap-check.template' ('{template}')"
        )));
    }
    match all.or(template) {
        Some(check) if !TEMPLATES.contains(&&*check) => Err(Refusal::new(format!(
            "Unsupported value '{check}' for qcow2 option 'overlap-check'. Allowed are any of the following: {}",
            TEMPLATES.join(", ")
        ))),
        _ => Ok(()),
    }
}

/// Bytes of memory for parts of images.
struct Caches {
    all: Option<u64>,
    l2: Option<u64>,
    refcounts: Option<u64>,
    /// Of an L2 table that are read at once.
    l2_entry: Option<u64>,
}

impl Caches {
    fn take(options: &mut NodeOptions) -> Result<Self, Refusal> {
        Ok(Self {
            all: size(options, "cache-size")?,
            l2: size(options, "l2-cache-size")?,
            refcounts: size(options, "refcount-cache-size")?,
            l2_entry: size(options, "l2-cache-entry-size")?,
        })
    }

    fn judge(&self, header: Option<&Header>) -> Result<(), Refusal> {
        let exceeds = |part: Option<u64>| part.zip(self.all).is_some_and(|(part, all)| part > all);
        let wrong = match () {
            () if self.all.is_some() && self.l2.is_some() && self.refcounts.is_some() => {
                "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time"
            }
            () if exceeds(self.l2) => "l2-cache-size may not exceed cache-size",
            () if exceeds(self.refcounts) => "refcount-cache-size may not exceed cache-size",
            () => return header.map_or(Ok(()), |header| self.judge_in(header)),
        };
        Err(Refusal::new(wrong))
    }

    /// The same, as far as it depends on the image.
    fn judge_in(&self, header: &Header) -> Result<(), Refusal> {
        let geometry = &header.geometry;
        let cluster = geometry.cluster_size();
        if let Some(entry) = self.l2_entry
            && !(entry.is_power_of_two() && (512..=cluster).contains(&entry))
        {
            return Err(Refusal::new(format!(
                "L2 cache entry size must be a power of two between 512 and the cluster size ({cluster})"
            )));
        }
        // What is given to all, and L2 tables have no use for, is for refcounts.
        let tables = header
            .size
            .div_ceil(cluster)
            .saturating_mul(1 << geometry.l2_entry_bits());
        let left = self.all.map(|all| all.saturating_sub(self.l2.unwrap_or(tables)));
        let refcounts = self.refcounts.or(left).unwrap_or_default();
        if refcounts / cluster > i32::MAX as u64 {
            return Err(Refusal::new("Refcount cache size too big"));
        }
        Ok(())
    }
}
