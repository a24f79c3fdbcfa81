//! The normals of [`crate::noise`] in vectors: the same words, the same operations, the same order.

use super::isa::{Isa, LANES, Vectorized};
use crate::noise::{ANGLE_STEP, COS, GROUP, LOG, MINUS_TWO_LN_2, SIN, SQRT_HALF_BITS, UNIFORM_OFFSET};
use crate::rng::{self, GOLDEN};

/// The generators of one block.
pub(crate) struct Gauss<S: Isa> {
    isa: S,
    state: [S::U; 4],
}

/// What SplitMix64 has added to its start when it outputs word `word` of each lane's state.
const fn increments(word: usize) -> [u64; rng::LANES] {
    let mut out = [0; rng::LANES];
    let mut lane = 0;
    while lane < rng::LANES {
        out[lane] = GOLDEN.wrapping_mul((4 * lane + word + 1) as u64);
        lane += 1;
    }
    out
}

const INCREMENTS: [[u64; rng::LANES]; 4] = [increments(0), increments(1), increments(2), increments(3)];

/// Each coefficient four times, for [`Isa::fma_constant`].
const fn repeated<const COUNT: usize>(coefficients: [f32; COUNT]) -> [[f32; 4]; COUNT] {
    let mut out = [[0.0; 4]; COUNT];
    let mut power = 0;
    while power < COUNT {
        out[power] = [coefficients[power]; 4];
        power += 1;
    }
    out
}

static LOG_REPEATED: [[f32; 4]; LOG.len()] = repeated(LOG);
static SIN_REPEATED: [[f32; 4]; SIN.len()] = repeated(SIN);
static COS_REPEATED: [[f32; 4]; COS.len()] = repeated(COS);

#[inline(always)]
fn horner<S: Isa, const COUNT: usize>(isa: S, coefficients: &'static [[f32; 4]; COUNT], x: S::F) -> S::F {
    let mut sum = isa.fma_constant(x, isa.splat(coefficients[COUNT - 1][0]), &coefficients[COUNT - 2]);
    let mut power = COUNT - 2;
    while power > 0 {
        power -= 1;
        sum = isa.fma_constant(sum, x, &coefficients[power]);
    }
    sum
}

impl<S: Isa> Gauss<S> {
    /// The generators of the block with key `key`.
    #[inline(always)]
    pub(crate) fn new(isa: S, key: u64) -> Self {
        let start = isa.splat_u(key);
        let mut state = [start; 4];
        for (word, increments) in state.iter_mut().zip(&INCREMENTS) {
            let x = isa.add_u(start, isa.load_u(increments));
            let x = isa.mul_u(isa.xor_u(x, isa.shr_u::<30>(x)), isa.splat_u(0xBF58_476D_1CE4_E5B9));
            let x = isa.mul_u(isa.xor_u(x, isa.shr_u::<27>(x)), isa.splat_u(0x94D0_49BB_1331_11EB));
            *word = isa.xor_u(x, isa.shr_u::<31>(x));
        }
        Gauss { isa, state }
    }

    /// The normals of the next groups of columns.
    #[inline(always)]
    pub(crate) fn fill(&mut self, groups: &mut [[f32; GROUP]]) {
        self.isa.vectorize(Fill { gauss: self, groups });
    }

    /// One step of xoshiro256++ in every lane.
    #[inline(always)]
    pub(crate) fn draw(&mut self) -> S::I {
        let isa = self.isa;
        let [s0, s1, s2, s3] = self.state;
        let result = isa.add_u(isa.rotl_u::<23, 41>(isa.add_u(s0, s3)), s0);
        let t = isa.shl_u::<17>(s1);
        let s2 = isa.xor_u(s2, s0);
        let s3 = isa.xor_u(s3, s1);
        self.state = [isa.xor_u(s0, s3), isa.xor_u(s1, s2), isa.xor_u(s2, t), isa.rotl_u::<45, 19>(s3)];
        isa.halves(result)
    }

    /// The normals of the next 32 columns.
    #[inline(always)]
    fn group(&mut self) -> [S::F; 2] {
        let isa = self.isa;
        let (a, b) = (self.draw(), self.draw());
        let u = isa.fraction_plus(isa.shr::<1>(a), UNIFORM_OFFSET);
        let bits = isa.bits(u);
        let exponent = isa.sar::<23>(isa.sub_i(bits, isa.splat_i(SQRT_HALF_BITS)));
        let f = isa.sub(isa.from_bits(isa.sub_i(bits, isa.shl::<23>(exponent))), isa.splat(1.0));
        let log = isa.mul(f, horner(isa, &LOG_REPEATED, f));
        let square = isa.fma(isa.to_float(exponent), isa.splat(MINUS_TWO_LN_2), log);
        let r = isa.sqrt_of_moderate(square);

        let x = isa.mul(isa.to_float(isa.shl::<2>(b)), isa.splat(ANGLE_STEP));
        let square = isa.mul(x, x);
        let sin = isa.mul(x, horner(isa, &SIN_REPEATED, square));
        let cos = isa.with_sign(horner(isa, &COS_REPEATED, square), b);
        let exchanged = isa.has_bit::<30>(b);
        let [first, second] = isa.exchange(exchanged, cos, sin);
        [isa.mul(r, first), isa.mul(r, second)]
    }
}

/// [`Gauss::fill`], as a function of its own: it needs all registers.
struct Fill<'a, S: Isa> {
    gauss: &'a mut Gauss<S>,
    groups: &'a mut [[f32; GROUP]],
}

impl<S: Isa> Vectorized for Fill<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<T: Isa>(self, _isa: T) {
        let isa = self.gauss.isa;
        for group in self.groups {
            let [first, second] = self.gauss.group();
            let (halves, _) = group.as_chunks_mut::<LANES>();
            isa.store(&mut halves[0], first);
            isa.store(&mut halves[1], second);
        }
    }
}

/// Fills `out` with the normals of one row.
#[inline(always)]
pub(crate) fn fill_row<S: Isa>(isa: S, call_key: u64, row: u64, out: &mut [f32]) {
    for (block, columns) in out.chunks_mut(rng::BLOCK).enumerate() {
        let mut gauss = Gauss::new(isa, rng::block_key(call_key, row, block as u64));
        let (groups, tail) = columns.as_chunks_mut::<GROUP>();
        gauss.fill(groups);
        if !tail.is_empty() {
            let mut group = [0.0; GROUP];
            gauss.fill(std::slice::from_mut(&mut group));
            tail.copy_from_slice(&group[..tail.len()]);
        }
    }
}
