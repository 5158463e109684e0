//! How a guest's network card gets its addresses: a file for systemd-networkd (systemd.network(5)) or `NetworkManager`
//! (nm-settings-keyfile(5)), whichever the guest has. The card is told by its address, whatever the guest calls it.

use std::fmt::Write;
use std::net::IpAddr;
use std::str::FromStr;

use block::{Error, Result, escape};
use ext4_reader::FileKind;

use super::Guest;

/// How a network card gets its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// From whoever gives them out on the network.
    Dhcp,
    /// It has this one.
    Static(StaticAddress),
}

/// An address, and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticAddress {
    /// The address.
    pub address: IpAddr,
    /// How many of its first bits are the network's.
    pub prefix: u8,
    /// Where packets for others go.
    pub gateway: Option<IpAddr>,
    /// Who knows names.
    pub servers: Vec<IpAddr>,
}

/// `dhcp`, or `ADDRESS/PREFIX[,gw=ADDRESS][,dns=ADDRESS]...`
impl FromStr for Addressing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(format!("\"{}\" gives a machine no address", escape(text)))
                .with_hint("dhcp, or such as 10.0.0.5/24,gw=10.0.0.1,dns=10.0.0.1")
        };
        if text == "dhcp" {
            return Ok(Self::Dhcp);
        }
        let mut parts = text.split(',');
        let (address, prefix) = parts
            .next()
            .and_then(|part| part.split_once('/'))
            .ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix
            .parse()
            .ok()
            .filter(|prefix| *prefix <= most)
            .ok_or_else(wrong)?;
        let mut given = StaticAddress {
            address,
            prefix,
            gateway: None,
            servers: Vec::new(),
        };
        for part in parts {
            match part
                .split_once('=')
                .and_then(|(key, value)| Some((key, value.parse().ok()?)))
            {
                Some(("gw", gateway)) => given.gateway = Some(gateway),
                Some(("dns", server)) => given.servers.push(server),
                _ => return Err(wrong()),
            }
        }
        Ok(Self::Static(given))
    }
}

pub(super) fn set(guest: &mut Guest, mac: [u8; 6], addressing: &Addressing) -> Result<()> {
    let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let mac = mac.join(":");
    let (networkd, manager) = ("/etc/systemd/network", "/etc/NetworkManager/system-connections");
    if guest.kind(manager)? == Some(FileKind::Directory) {
        let path = format!("{manager}/imgtool.nmconnection");
        return guest.put(&path, keyfile(&mac, addressing).as_bytes(), 0o600);
    }
    if guest.kind(networkd)? == Some(FileKind::Directory) {
        let path = format!("{networkd}/10-imgtool.network");
        return guest.put(&path, network_file(&mac, addressing).as_bytes(), 0o644);
    }
    Err(
        Error::invalid("the guest has neither systemd-networkd nor NetworkManager to tell its address")
            .with_hint("leave out --ip: the guest does as its template says"),
    )
}

fn network_file(mac: &str, addressing: &Addressing) -> String {
    let mut text = format!("[Match]\nMACAddress={mac}\n\n[Network]\n");
    // Writing to a string does not fail.
    let _ = match addressing {
        Addressing::Dhcp => writeln!(text, "DHCP=yes"),
        Addressing::Static(given) => {
            let _ = writeln!(text, "Address={}/{}", given.address, given.prefix);
            if let Some(gateway) = given.gateway {
                let _ = writeln!(text, "Gateway={gateway}");
            }
            given
                .servers
                .iter()
                .try_for_each(|server| writeln!(text, "DNS={server}"))
        }
    };
    text
}

fn keyfile(mac: &str, addressing: &Addressing) -> String {
    let mut text = format!("[connection]\nid=imgtool\ntype=ethernet\n\n[ethernet]\nmac-address={mac}\n");
    let (own, other) = match addressing {
        Addressing::Static(given) if given.address.is_ipv6() => ("ipv6", "ipv4"),
        _ => ("ipv4", "ipv6"),
    };
    let _ = match addressing {
        Addressing::Dhcp => write!(text, "\n[{own}]\nmethod=auto\n\n[{other}]\nmethod=auto\n"),
        Addressing::Static(given) => {
            let gateway = given
                .gateway
                .map(|gateway| format!(",{gateway}"))
                .unwrap_or_default();
            let _ = write!(
                text,
                "\n[{own}]\nmethod=manual\naddress1={}/{}{gateway}\n",
                given.address, given.prefix
            );
            if !given.servers.is_empty() {
                let servers = given.servers.iter().map(|server| format!("{server};"));
                let _ = writeln!(text, "dns={}", servers.collect::<String>());
            }
            write!(text, "\n[{other}]\nmethod=auto\n")
        }
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_in_one_word() {
        let given: Addressing = "10.0.0.5/24,gw=10.0.0.1,dns=10.0.0.2,dns=fd00::1"
            .parse()
            .unwrap();
        assert_eq!(
            network_file("52:54:00:00:00:01", &given),
            "[Match]\nMACAddress=52:54:00:00:00:01\n\n[Network]\nAddress=10.0.0.5/24\nGateway=10.0.0.1\nDNS=10.0.0.2\nDNS=fd00::1\n"
        );
        assert!(
            keyfile("m", &given)
                .contains("[ipv4]\nmethod=manual\naddress1=10.0.0.5/24,10.0.0.1\ndns=10.0.0.2;fd00::1;\n")
        );
        assert!(network_file("m", &"dhcp".parse().unwrap()).ends_with("DHCP=yes\n"));
        for wrong in [
            "",
            "10.0.0.5",
            "10.0.0.5/33",
            "10.0.0.5/24,gw",
            "10.0.0.5/24,gw=x",
            "DHCP",
            "a/24",
        ] {
            assert!(wrong.parse::<Addressing>().is_err(), "{wrong}");
        }
    }
}
