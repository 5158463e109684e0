//! The ELF file inside a compressed kernel, which launchers without a boot loader want.
//!
//! A bzImage begins with real-mode code, whose header (the kernel's documentation, *The Linux/x86 Boot Protocol*) says
//! where in the rest the compressed kernel is: `payload_offset` and `payload_length`, counted from the end of the
//! real-mode code. Its last four bytes are the length of what comes out.

use std::io::Read;

use block::{Error, Result};

/// More than any kernel has, in bytes: what comes out is kept in memory.
const MAX_LEN: usize = 1 << 30;
/// What a block of the old LZ4 format holds at most, in bytes.
const LZ4_BLOCK: usize = 8 << 20;
const ELF: &[u8] = b"\x7fELF";

/// The ELF file in a kernel for `x86_64`; the kernel itself where it is one.
///
/// # Errors
/// `InvalidInput` for what is no kernel, `Corrupt` for one that contradicts itself, `Unsupported` for one that is too old
/// or compressed in a way that is not known here.
pub fn extract(kernel: &[u8]) -> Result<Vec<u8>> {
    if kernel.starts_with(ELF) {
        check_elf(kernel)?;
        return Ok(kernel.to_vec());
    }
    let payload = payload(kernel)?;
    let (data, len) = payload
        .split_last_chunk()
        .map(|(data, len)| (data, u32::from_le_bytes(*len) as usize))
        .ok_or_else(|| damaged("its compressed part is shorter than four bytes"))?;
    if len > MAX_LEN {
        return Err(damaged(format!("it has {len} bytes when it is unpacked")));
    }
    let unpacked = unpack(payload, data, len)?;
    if unpacked.len() != len {
        let message = format!("{len} bytes were to come out, and {} did", unpacked.len());
        return Err(damaged(message));
    }
    check_elf(&unpacked)?;
    Ok(unpacked)
}

/// The compressed part of a bzImage.
fn payload(kernel: &[u8]) -> Result<&[u8]> {
    let field = |offset: usize| {
        let bytes = kernel.get(offset..offset + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    };
    if kernel.get(0x202..0x206) != Some(b"HdrS") {
        return Err(Error::invalid("it is no kernel for x86").with_hint("name a bzImage or an ELF file"));
    }
    let short = || damaged("it ends in its header");
    let version = field(0x206).ok_or_else(short)? & 0xffff;
    if version < 0x208 {
        let message = format!(
            "its boot protocol {version:#x} is older than 0x208, which is the first to tell where the kernel is"
        );
        return Err(Error::unsupported(message).with_hint("use a kernel from 2.6.26 on"));
    }
    let sectors = match kernel[0x1f1] {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let offset = u64::from(field(0x248).ok_or_else(short)?);
    let len = u64::from(field(0x24c).ok_or_else(short)?);
    // Three numbers of at most 32 bits.
    let start = (sectors + 1) * 512 + offset;
    let range = start as usize..(start + len) as usize;
    kernel.get(range).ok_or_else(|| {
        let message = format!(
            "its compressed part, {len} bytes at {start:#x}, reaches past its end at {:#x}",
            kernel.len()
        );
        damaged(message)
    })
}

/// `payload` ends with the length of what comes out, which is part of a gzip file and comes after `data` in others.
fn unpack(payload: &[u8], data: &[u8], len: usize) -> Result<Vec<u8>> {
    let read = |from: &mut dyn Read| {
        let mut to = Vec::new();
        // One more, to find that there is more than was said.
        let result = from.take(len as u64 + 1).read_to_end(&mut to);
        result.map_err(|error| damaged(format!("its compressed part is damaged: {error}")))?;
        Ok(to)
    };
    match payload {
        [0x1f, 0x8b, ..] => read(&mut flate2::bufread::GzDecoder::new(payload)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => read(&mut liblzma::bufread::XzDecoder::new(data)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::Decoder::with_buffer(data)
                .map_err(|error| Error::io("unpack the kernel", error))?
                .single_frame();
            // The kernel's own window, which is larger than what is let through by default.
            decoder
                .window_log_max(27)
                .map_err(|error| Error::io("unpack the kernel", error))?;
            read(&mut decoder)
        }
        [0x5d, 0, 0, ..] => {
            let stream = liblzma::stream::Stream::new_lzma_decoder(u64::MAX)
                .map_err(|error| Error::io("unpack the kernel", error.into()))?;
            read(&mut liblzma::bufread::XzDecoder::new_stream(data, stream))
        }
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => unpack_lz4(&blocks[..blocks.len() - 4], len),
        [first, second, third, fourth, ..] => {
            let message = format!(
                "it is compressed in an unknown way ({first:02x} {second:02x} {third:02x} {fourth:02x})"
            );
            Err(Error::unsupported(message)
                .with_hint("use one that is compressed with gzip, xz, lzma, zstd or lz4"))
        }
        _ => Err(damaged("its compressed part is empty")),
    }
}

/// The format of `lz4 -l`: blocks after their lengths, of 8 MiB each but for the last.
fn unpack_lz4(mut blocks: &[u8], len: usize) -> Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    while let Some((block_len, rest)) = blocks.split_first_chunk() {
        let block_len = u32::from_le_bytes(*block_len) as usize;
        let cut = || damaged("its compressed part ends in the middle of a block");
        let (block, rest) = rest.split_at_checked(block_len).ok_or_else(cut)?;
        let block = lz4_flex::block::decompress(block, LZ4_BLOCK)
            .map_err(|error| damaged(format!("its compressed part is damaged: {error}")))?;
        unpacked.extend_from_slice(&block);
        if unpacked.len() > len {
            break;
        }
        blocks = rest;
    }
    Ok(unpacked)
}

/// 64 bits, little-endian, for `x86_64`.
fn check_elf(file: &[u8]) -> Result<()> {
    if !file.starts_with(ELF) {
        return Err(damaged("what comes out is no ELF file"));
    }
    if file.get(4..6) != Some(&[2, 1]) || file.get(18..20) != Some(&[62, 0]) {
        return Err(Error::unsupported("it is an ELF file, but not for x86_64"));
    }
    Ok(())
}

fn damaged(message: impl Into<String>) -> Error {
    #[derive(Debug)]
    struct Damaged(String);

    impl std::fmt::Display for Damaged {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "the kernel is damaged: {}", self.0)
        }
    }

    impl std::error::Error for Damaged {}

    Error::corrupt(Damaged(message.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// An ELF file for `x86_64` as far as its header goes, of `len` bytes.
    fn elf(len: usize) -> Vec<u8> {
        let mut elf: Vec<u8> = (0..len).map(|i| (i / 7 * 31) as u8).collect();
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18..20].copy_from_slice(&[62, 0]);
        elf
    }

    /// What a command makes of its input.
    fn through(words: &[&str], input: &[u8]) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, input).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let mut command = Command::new(words[0]);
        let output = command.args(&words[1..]).stdin(file).stderr(Stdio::inherit());
        let output = output.output().expect("scripts/setup.sh test installs it");
        assert!(output.status.success());
        output.stdout
    }

    /// A bzImage around a compressed kernel, as the kernel's build makes it.
    fn bz_image(compressed: &[u8], len: Option<usize>) -> Vec<u8> {
        let mut image = vec![0; 1024 + 40];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image.extend(compressed);
        if let Some(len) = len {
            image.extend((len as u32).to_le_bytes());
        }
        let payload_len = (image.len() - 1064) as u32;
        image[0x248..0x24c].copy_from_slice(&40u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&payload_len.to_le_bytes());
        image.extend([0; 100]);
        image
    }

    #[test]
    fn what_the_tools_compress_comes_out_again() {
        let elf = elf(3_000_000);
        let kernels: [(&[&str], bool); 5] = [
            (&["gzip", "-9c"], false),
            (&["xz", "--check=crc32", "-c"], true),
            (&["xz", "--format=lzma", "-c"], true),
            // As the kernel's build has it.
            (&["zstd", "-22", "--ultra", "-c"], true),
            (&["zstd", "-1", "--long=27", "-c"], true),
        ];
        for (words, appended) in kernels {
            let image = bz_image(&through(words, &elf), appended.then_some(elf.len()));
            assert!(extract(&image).unwrap() == elf, "{words:?}");
        }
        assert!(extract(&elf).unwrap() == elf);
    }

    #[test]
    fn what_is_damaged_is_an_error_and_no_panic() {
        let elf = elf(20_000);
        let compressed = through(&["zstd", "-c"], &elf);
        let image = bz_image(&compressed, Some(elf.len()));
        for len in 0..image.len() - 100 {
            assert!(extract(&image[..len]).is_err(), "{len}");
        }
        for byte in 0..0x260 {
            for value in [0, 0x7f, 0xff] {
                let mut image = image.clone();
                image[byte] = value;
                let _ = extract(&image);
            }
        }
        for (image, says) in [
            (
                bz_image(&compressed, Some(elf.len() + 1)),
                "20001 bytes were to come out, and 20000 did",
            ),
            (
                bz_image(&compressed, Some(elf.len() - 1)),
                "19999 bytes were to come out, and 20000 did",
            ),
            (
                bz_image(&compressed, Some(0xffff_ffff)),
                "4294967295 bytes when it is unpacked",
            ),
            (bz_image(b"BZh9123456", Some(10)), "unknown way (42 5a 68 39)"),
            (
                bz_image(b"\x02\x21\x4c\x18\xff\0\0\0", Some(10)),
                "in the middle of a block",
            ),
            (
                bz_image(b"\x02\x21\x4c\x18\x01\0\0\0\xff", Some(10)),
                "compressed part is damaged",
            ),
            (bz_image(b"", None), "shorter than four bytes"),
            (b"no kernel".to_vec(), "no kernel for x86"),
            (b"\x7fELF\x01\x01".to_vec(), "not for x86_64"),
        ] {
            let error = extract(&image).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
