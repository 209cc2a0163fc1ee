//! How a device's registers become bytes and come back.
//!
//! A device keeps what a guest can change in one type that derives `Serialize` and `Deserialize`,
//! so that no field can be forgotten, and refuses in [`Device::restore`](crate::device::Device)
//! the values that its registers cannot have.

use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::device::StateError;
use crate::planted::{self, Flaw};

/// Keeps bytes as they come. Postcard's own way extends by one at a time, which takes most of a fuzzer's
/// time where a device has a buffer.
struct Kept(Vec<u8>);

impl Flavor for Kept {
    type Output = Vec<u8>;

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

/// Holds bytes against those that are left here, and keeps none.
struct Held<'a>(&'a [u8]);

impl Flavor for Held<'_> {
    type Output = ();

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0 = self.0.strip_prefix(bytes).ok_or(postcard::Error::SerializeBufferFull)?;
        Ok(())
    }

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        match self.0 {
            [first, rest @ ..] if *first == byte => self.0 = rest,
            _ => return Err(postcard::Error::SerializeBufferFull),
        }
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        self.0.is_empty().then_some(()).ok_or(postcard::Error::SerializeBufferFull)
    }
}

/// The bytes of `state`.
pub fn encode<T: Serialize>(state: &T) -> Vec<u8> {
    // What most devices need at once, and no more: growing from nothing takes five allocations.
    let room = Kept(Vec::with_capacity(64));
    postcard::serialize_with_flavor(state, room)
        .expect("register state holds only types that have a length")
}

/// Whether that is what [`encode`] makes of `state`.
fn is_encoded<T: Serialize>(state: &T, bytes: &[u8]) -> bool {
    postcard::serialize_with_flavor(state, Held(bytes)).is_ok()
}

/// How much of `bytes` there is up to the last that is not 0: what of a buffer is worth saving. Looks at
/// many at once, since a fuzzer saves often.
pub fn used(bytes: &[u8]) -> usize {
    const AT_ONCE: usize = 64;
    let (blocks, rest) = bytes.as_chunks::<AT_ONCE>();
    let last = |bytes: &[u8]| bytes.iter().rposition(|&byte| byte != 0).map(|last| last + 1);
    if let Some(used) = last(rest) {
        return bytes.len() - rest.len() + used;
    }
    let full = blocks.iter().rposition(|block| *block != [0; AT_ONCE]);
    full.map_or(0, |at| at * AT_ONCE + last(&blocks[at]).unwrap_or(AT_ONCE))
}

/// Reads what [`encode`] wrote for the device called `device`.
///
/// # Errors
/// When the bytes are not such a state, more than one, or not as [`encode`] writes it: a number may be
/// written in more ways than one, and what is restored must be what was saved.
pub fn decode<T>(device: &'static str, bytes: &[u8]) -> Result<T, StateError>
where
    T: Serialize + DeserializeOwned,
{
    let error = |what: String| StateError { device, what };
    if planted::has(Flaw::StateShort) && bytes[0] == u8::MAX {
        return Err(error("begins with 255".to_owned()));
    }
    match postcard::take_from_bytes(bytes) {
        Ok((state, [])) if is_encoded(&state, bytes) => Ok(state),
        Ok((_, [])) => Err(error("is not written as a state is".to_owned())),
        Ok((_, rest)) => Err(error(format!("{} bytes too many", rest.len()))),
        Err(e) => Err(error(format!("cannot be read ({e})"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_of_a_buffer_ends_with_its_last_byte_that_is_not_0() {
        for len in [0, 1, 63, 64, 65, 200] {
            assert_eq!(used(&vec![0; len]), 0);
            for at in 0..len {
                let mut bytes = vec![0; len];
                bytes[at] = 1;
                bytes[0] = 1;
                assert_eq!(used(&bytes), at + 1, "{at} of {len}");
            }
        }
    }

    #[test]
    fn what_is_short_or_long_is_refused() {
        let bytes = encode(&(1u8, 0x1234u16));
        assert_eq!(decode::<(u8, u16)>("d", &bytes), Ok((1, 0x1234)));
        assert!(decode::<(u8, u16)>("d", &bytes[..1]).is_err());
        // 1, with a byte too many.
        let wide = decode::<u64>("d", &[0x81, 0]).unwrap_err().what;
        assert!(wide.contains("not written as"), "{wide}");
        let long = [&bytes[..], &[0]].concat();
        assert!(decode::<(u8, u16)>("d", &long).unwrap_err().what.contains("1 bytes too many"));
    }
}
