//! How a guest's network card gets its addresses: a file for systemd-networkd (systemd.network(5)) or `NetworkManager`
//! (nm-settings-keyfile(5)), whichever the guest has. The card is told by its address, whatever the guest calls it.

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::str::FromStr;

use block::{Error, Result, escape};
use ext4_reader::FileKind;

use super::Guest;

const HINT: &str = "dhcp, or such as 10.0.0.5/24,gw=10.0.0.1,dns=10.0.0.1";

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
        let wrong =
            || Error::invalid(format!("\"{}\" gives a machine no address", escape(text))).with_hint(HINT);
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
        given.check()?;
        Ok(Self::Static(given))
    }
}

impl StaticAddress {
    /// Fails for what no card can have, or does not work with: an address that stands for a network, all machines of one, or none; and a
    /// gateway that cannot be reached.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn check(&self) -> Result<()> {
        let Self { address, prefix, .. } = *self;
        if !is_one_machines(address) || address.is_loopback() {
            let message = format!("{address} cannot be the address of a machine");
            return Err(Error::invalid(message).with_hint(HINT));
        }
        let network = Network { address, prefix };
        if prefix == 0 {
            return Err(
                Error::invalid(format!("{network} is all addresses, and no network")).with_hint(HINT),
            );
        }
        if let Some(what) = network.stands_for(address) {
            let message = format!("{network} is {what}, and no machine's");
            return Err(Error::invalid(message).with_hint(HINT));
        }
        if let Some(gateway) = self.gateway {
            network.check_gateway(gateway)?;
        }
        let wrong = self.servers.iter().find(|server| !is_one_machines(**server));
        wrong.map_or(Ok(()), |server| {
            Err(Error::invalid(format!("{server} cannot be a server of names")).with_hint(HINT))
        })
    }
}

/// Whether it is not several machines' address, nor nobody's.
fn is_one_machines(address: IpAddr) -> bool {
    let is_broadcast =
        matches!(address, IpAddr::V4(address) if address.is_broadcast() || address.octets()[0] == 0);
    !(address.is_unspecified() || address.is_multicast() || is_broadcast)
}

/// The network that an address is in.
#[derive(Clone, Copy)]
struct Network {
    address: IpAddr,
    /// At least 1.
    prefix: u8,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Network {
    /// What an address of it stands for besides a machine. In the smallest networks, every one is a machine's (RFC 3021, RFC 6164).
    fn stands_for(self, address: IpAddr) -> Option<&'static str> {
        let (bits, width) = bits(address);
        let own = width - u32::from(self.prefix);
        if own <= 1 {
            return None;
        }
        let mask = (1 << own) - 1;
        if bits & mask == 0 {
            return Some("the address of the network itself");
        }
        (address.is_ipv4() && bits & mask == mask).then_some("the address of all machines in the network")
    }

    fn check_gateway(self, gateway: IpAddr) -> Result<()> {
        let wrong = |why: &str| {
            Err(Error::invalid(format!("{gateway} cannot be the gateway of {self}: {why}")).with_hint(HINT))
        };
        let ((bits_of_it, width), (own, _)) = (bits(gateway), bits(self.address));
        if gateway.is_ipv4() != self.address.is_ipv4() {
            return wrong("one is IPv4, and the other IPv6");
        }
        if gateway == self.address {
            return wrong("it is the machine's own address");
        }
        // Every card has such an address, and is in that network.
        if matches!(gateway, IpAddr::V6(gateway) if gateway.is_unicast_link_local()) {
            return Ok(());
        }
        if !is_one_machines(gateway) || (bits_of_it ^ own) >> (width - u32::from(self.prefix)) != 0 {
            return wrong("it is not in that network");
        }
        self.stands_for(gateway)
            .map_or(Ok(()), |what| wrong(&format!("it is {what}")))
    }
}

/// An address as a number, and how many bits it has.
fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(address) => (address.to_bits().into(), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
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

    #[test]
    fn addresses_that_cannot_work_are_refused() {
        for (wrong, why) in [
            ("10.0.0.0/24", "the network itself"),
            ("10.0.0.255/24", "all machines in the network"),
            ("0.0.0.0/0", "cannot be the address"),
            ("10.0.0.5/0", "no network"),
            ("224.0.0.1/24", "cannot be the address"),
            ("255.255.255.255/8", "cannot be the address"),
            ("127.0.0.1/8", "cannot be the address"),
            ("::/64", "cannot be the address"),
            ("::1/128", "cannot be the address"),
            ("ff02::1/64", "cannot be the address"),
            ("fd00::/64", "the network itself"),
            ("10.0.0.5/24,gw=fd00::1", "the other IPv6"),
            ("fd00::5/64,gw=10.0.0.1", "the other IPv6"),
            ("10.0.0.5/24,gw=10.0.1.1", "not in that network"),
            ("10.0.0.5/24,gw=10.0.0.5", "own address"),
            ("10.0.0.5/24,gw=10.0.0.0", "the network itself"),
            ("10.0.0.5/24,gw=10.0.0.255", "all machines"),
            ("10.0.0.5/32,gw=10.0.0.1", "not in that network"),
            ("fd00::5/64,gw=fd00:0:0:1::1", "not in that network"),
            ("10.0.0.5/24,dns=0.0.0.0", "server of names"),
        ] {
            let error = wrong.parse::<Addressing>().unwrap_err();
            assert!(error.to_string().contains(why), "{wrong}: {error}");
            assert!(error.hint().is_some());
        }
        for right in [
            "10.0.0.5/24,gw=10.0.0.1",
            "10.0.0.0/31,gw=10.0.0.1",
            "10.0.0.7/32",
            "10.0.0.255/23,gw=10.0.1.0",
            "10.255.255.254/1,gw=1.0.0.1",
            "169.254.3.4/16",
            "fd00::5/64,gw=fe80::1",
            "fd00::5/64,gw=fd00::1,dns=10.0.0.1",
            "fd00::/127,gw=fd00::1",
            "2001:db8::ffff/112,gw=2001:db8::1",
        ] {
            assert!(right.parse::<Addressing>().is_ok(), "{right}");
        }
    }
}
