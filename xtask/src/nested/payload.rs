//! Payload: the ELF kernel that a bzImage contains, compressed.
//!
//! Linux, `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header".

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Sectors of the real-mode code behind the boot sector.
const SETUP_SECTS: usize = 0x1f1;
const MAGIC: usize = 0x202;
/// Start and length of the payload in the protected-mode code, since boot protocol 2.08.
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The program that unpacks a payload, by its first bytes.
const TOOLS: [(&[u8], &str); 2] = [(&[0x28, 0xb5, 0x2f, 0xfd], "zstd"), (&[0x02, 0x21, 0x4c, 0x18], "lz4")];

/// The kernel inside `image`, unpacked.
///
/// # Errors
///
/// The image has no payload in a known compression, or it cannot be unpacked, or not to the size that is written
/// behind it.
pub fn unpack(image: &[u8]) -> Result<Vec<u8>> {
    let (packed, size) = find(image)?;
    let Some((_, tool)) = TOOLS.iter().find(|(magic, _)| packed.starts_with(magic)) else {
        bail!("the kernel is compressed in an unknown way, beginning with {:02x?}", packed.get(..4));
    };
    let kernel = filter(tool, packed)?;
    ensure!(kernel.len() == size, "{tool} gave {} bytes instead of {size}", kernel.len());
    Ok(kernel)
}

/// The compressed kernel, and the size that it has unpacked, which is in the payload's last four bytes.
fn find(image: &[u8]) -> Result<(&[u8], usize)> {
    ensure!(image.get(MAGIC..MAGIC + 4) == Some(b"HdrS"), "this is no bzImage");
    let sectors = match image[SETUP_SECTS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (1 + sectors) * 512 + word(image, PAYLOAD_OFFSET)?;
    let payload = image.get(start..).and_then(|rest| rest.get(..word(image, PAYLOAD_LENGTH).ok()?));
    let (packed, size) =
        payload.and_then(|payload| payload.split_last_chunk()).context("the payload is not there")?;
    Ok((packed, usize::try_from(u32::from_le_bytes(*size))?))
}

fn word(image: &[u8], at: usize) -> Result<usize> {
    let bytes = image.get(at..).and_then(|rest| rest.first_chunk()).context("the header is cut off")?;
    Ok(usize::try_from(u32::from_le_bytes(*bytes))?)
}

/// What `tool -dc` makes of `input`.
pub fn filter(tool: &str, input: &[u8]) -> Result<Vec<u8>> {
    let mut command = Command::new(tool);
    command.arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {tool}"))?;
    let mut stdin = child.stdin.take().context("no pipe")?;
    let output = std::thread::scope(|scope| {
        // Fails when the tool has ended, which its status says better.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output()
    })?;
    ensure!(output.status.success(), "{tool} ended with {}", output.status);
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image with one sector of real-mode code and `payload` 16 bytes behind it.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 16];
        image[SETUP_SECTS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend(payload);
        image.extend(b"behind it");
        image
    }

    #[test]
    fn the_payload_is_found_without_its_size() {
        assert_eq!(find(&image(b"packed\x07\x01\0\0")).unwrap(), (&b"packed"[..], 0x107));
    }

    #[test]
    fn no_image_a_cut_one_and_an_unknown_compression_are_refused() {
        assert!(unpack(b"\x7fELF").is_err());
        let image = image(b"packed\x07\x01\0\0");
        assert!(unpack(&image[..1024 + 16 + 3]).is_err());
        assert!(unpack(&image).unwrap_err().to_string().contains("70, 61, 63, 6b"));
    }

    #[test]
    fn a_filter_that_fails_is_an_error() {
        assert!(filter("false", &[0; 1 << 20]).unwrap_err().to_string().starts_with("false ended with"));
    }
}
