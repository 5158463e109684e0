//! hosts(5): the machine's own name has an address, on Debian 127.0.1.1.

use block::Result;

use super::Guest;

const PATH: &str = "/etc/hosts";

/// The address that stands for a machine without one that is always the same.
const OWN: &str = "127.0.1.1";

const NEW: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// Gives the address to the name with its domain, and without: the first is the canonical one (hostname(1)).
pub(super) fn set(guest: &mut Guest, hostname: &str, short: &str) -> Result<()> {
    let text = guest.text(PATH)?;
    let names = if hostname == short {
        short.to_owned()
    } else {
        format!("{hostname} {short}")
    };
    let changed = with_name(text.as_deref().unwrap_or(NEW), &names);
    guest.put(PATH, changed.as_bytes(), 0o644)
}

/// The same hosts with the line of this machine changed, or added behind the first.
fn with_name(text: &str, names: &str) -> String {
    let own = format!("{OWN}\t{names}");
    let mut lines: Vec<&str> = text.lines().collect();
    let is_own = |line: &&str| line.split_whitespace().next() == Some(OWN);
    match lines.iter().position(is_own) {
        Some(at) => lines[at] = &own,
        None => lines.insert(lines.len().min(1), &own),
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_line_changes() {
        assert_eq!(
            with_name("127.0.0.1 localhost\n127.0.1.1 old old.example\n# end\n", "web"),
            "127.0.0.1 localhost\n127.0.1.1\tweb\n# end\n"
        );
        assert_eq!(
            with_name("127.0.0.1 localhost\n::1 localhost", "web"),
            "127.0.0.1 localhost\n127.0.1.1\tweb\n::1 localhost\n"
        );
        assert_eq!(with_name("", "web"), "127.0.1.1\tweb\n");
    }
}
