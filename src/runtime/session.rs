//! A session: one sequence of tokens with its cache and work space.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::attention::{CacheParams, CacheType, KvCache, LisaAttention, Turn};
use crate::compute::{ActivationType, Matrix, Observer, Pool, Profile, default_threads};
use crate::model::{Buffers, Mode, Model, Scores, Tokens, forward, head, pass_tokens, thread_error};
use crate::{Error, Result};

/// How a session runs. The defaults are llama.cpp's.
#[derive(Debug, Clone)]
pub struct SessionParams {
    /// Tokens the context holds; 0: as many as the model was trained for.
    pub n_ctx: usize,
    /// Most tokens handed to the model at a time.
    pub n_batch: usize,
    /// Most tokens in one forward pass; it has fewer where that is faster.
    pub n_ubatch: usize,
    /// Threads for generation.
    pub n_threads: usize,
    /// Threads for prompts; 0: as many as for generation.
    pub n_threads_batch: usize,
    /// Element type of cached keys.
    pub cache_type_k: CacheType,
    /// Element type of cached values.
    pub cache_type_v: CacheType,
    /// Positions that layers with a sliding window keep beyond it, so that [`Session::truncate`] can go back as far at no cost;
    /// `None`: the whole context. The results are the same, but for roundings of what is read again at once.
    pub window_spare: Option<usize>,
    /// The form in which activations meet quantised weights.
    pub activations: ActivationType,
}

impl Default for SessionParams {
    fn default() -> Self {
        Self {
            n_ctx: 0,
            n_batch: 2048,
            n_ubatch: 512,
            n_threads: default_threads(),
            n_threads_batch: 0,
            cache_type_k: CacheType::F16,
            cache_type_v: CacheType::F16,
            window_spare: Some(512),
            activations: ActivationType::default(),
        }
    }
}

impl SessionParams {
    /// Tokens the context of `model` holds.
    fn context(&self, model: &Model) -> usize {
        if self.n_ctx == 0 { model.n_ctx_train() } else { self.n_ctx }
    }

    fn prompt_threads(&self) -> usize {
        if self.n_threads_batch == 0 { self.n_threads } else { self.n_threads_batch }
    }

    /// Most tokens of a pass through `model`.
    fn pass(&self, model: &Model) -> usize {
        let fast = pass_tokens(model.kernels(), model.decoder().n_ff_per_token(), self.prompt_threads());
        self.n_ubatch.min(self.n_batch).min(self.context(model)).min(fast)
    }

    fn cache(&self, model: &Model) -> CacheParams {
        let spare = self.window_spare.map(|n| n.max(self.pass(model)));
        CacheParams { ty_k: self.cache_type_k, ty_v: self.cache_type_v, n_ctx: self.context(model), spare }
    }
}

/// Passes are cut to whole numbers of these tokens: kernels take them so many at a time.
const EVEN: usize = 16;

/// One sequence of tokens on its way through a model.
pub struct Session {
    model: Arc<Model>,
    pool: Pool,
    pool_batch: Option<Pool>,
    cache: KvCache,
    buffers: Buffers,
    mode: Mode,
    n_ubatch: usize,
    /// The tokens of the context.
    ids: Vec<u32>,
    abort: Arc<AtomicBool>,
}

impl Session {
    /// A session with an empty context.
    ///
    /// # Errors
    /// [`Error::Params`] naming the parameter that is out of range, [`Error::Impossible`] where it needs more memory than there is.
    pub fn new(model: Arc<Model>, p: SessionParams) -> Result<Self> {
        let positive = |n: usize, flag: &str| match n {
            0 => Err(Error::Params(format!("{flag} must be at least 1"))),
            _ => Ok(()),
        };
        positive(p.n_ubatch, "-ub")?;
        positive(p.n_batch, "-b")?;
        positive(p.n_threads, "-t")?;
        let (n_ctx, n_ubatch) = (p.context(&model), p.pass(&model));
        let (n_threads, n_batch_threads) = (p.n_threads, p.prompt_threads());
        let pool = Pool::new(n_threads).map_err(thread_error)?;
        let pool_batch = (n_batch_threads != n_threads).then(|| Pool::new(n_batch_threads)).transpose();
        let decoder = model.decoder();
        if let Some(n) = decoder.positions.as_ref().map(Matrix::rows).filter(|&n| n < n_ctx) {
            let what = format!("-c {n_ctx}: the model has learned positions for {n} tokens and no more");
            return Err(Error::Impossible(what));
        }
        Ok(Self {
            cache: KvCache::new(decoder.caches(), p.cache(&model))?,
            buffers: Buffers::new(
                decoder,
                model.kernels(),
                n_ubatch,
                n_ctx,
                n_threads.max(n_batch_threads),
                p.activations,
            ),
            mode: Mode { kernels: model.kernels(), observer: None, profile: None },
            pool,
            pool_batch: pool_batch.map_err(thread_error)?,
            n_ubatch,
            ids: Vec::new(),
            abort: Arc::default(),
            model,
        })
    }

    /// Bytes that the cache of a session with these parameters takes when the context is full; `None` where heads do not divide into the
    /// blocks of the cache's types.
    pub fn cache_bytes(model: &Model, p: &SessionParams) -> Option<usize> {
        p.cache(model).n_bytes(model.decoder().caches())
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Tokens in the context.
    pub fn n_past(&self) -> usize {
        self.ids.len()
    }

    /// The tokens in the context.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Tokens the context holds.
    pub fn n_ctx(&self) -> usize {
        self.cache.n_ctx()
    }

    /// Threads used for generation.
    pub fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    /// The cache, for its size.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// Measures where the time of the passes from now on goes.
    pub fn start_profile(&mut self) {
        self.mode.profile = Some(Profile::default());
    }

    /// Where the time went since [`Session::start_profile`].
    pub fn profile(&self) -> Option<&Profile> {
        self.mode.profile.as_ref()
    }

    /// Shows `observer` what the matrices are multiplied with, from the next pass on.
    pub fn observe(&mut self, observer: Arc<dyn Observer>) {
        self.mode.observer = Some(observer);
    }

    /// Set it from anywhere: the call at work returns [`Error::Interrupted`] before its next forward pass.
    pub fn abort_flag(&self) -> Arc<AtomicBool> {
        self.abort.clone()
    }

    /// Appends `ids` to the context; `progress` hears how many are done. Returns the logits after the last, one per
    /// token of the vocabulary.
    ///
    /// # Errors
    /// [`Error::ContextFull`] (nothing was done), [`Error::Interrupted`] (the passes done so far stand),
    /// [`Error::Impossible`] for an empty list or an id outside the vocabulary.
    pub fn prefill(&mut self, ids: &[u32], progress: &mut dyn FnMut(usize)) -> Result<&[f32]> {
        self.check(ids)?;
        self.keep_states(ids);
        let mut done = 0;
        while done < ids.len() {
            let batch = self.next_batch(&ids[done..]);
            let n_logits = usize::from(done + batch.len() == ids.len());
            self.pass(batch, n_logits, n_logits)?;
            done += batch.len();
            progress(done);
        }
        self.keep_states(ids);
        let n_vocab = self.model.decoder().n_vocab();
        Ok(&self.buffers.logits()[..n_vocab])
    }

    /// Appends one token and returns the logits after it.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.prefill(&[id], &mut |_| ())
    }

    /// Appends `ids` and hands every one's index in `ids` and logits to `each`.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn logits_each(&mut self, ids: &[u32], each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        self.check(ids)?;
        self.keep_states(ids);
        let n_vocab = self.model.decoder().n_vocab();
        let mut done = 0;
        while done < ids.len() {
            let batch = self.next_batch(&ids[done..]);
            self.pass(batch, batch.len(), 0)?;
            for start in (0..batch.len()).step_by(self.buffers.n_logit_rows()) {
                let rows = start..(start + self.buffers.n_logit_rows()).min(batch.len());
                let (model, mode, buffers) = (&self.model, &self.mode, &self.buffers);
                let pool = self.pool_batch.as_mut().unwrap_or(&mut self.pool);
                pool.run(|w| head(model.decoder(), w, mode, buffers, batch.len(), rows.clone()));
                for (i, logits) in rows.zip(self.buffers.logits().chunks_exact(n_vocab)) {
                    each(done + i, logits);
                }
            }
            done += batch.len();
        }
        self.keep_states(ids);
        Ok(())
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.cache.cut(0);
    }

    /// Forgets all but the first `n` tokens. These are read again where a layer with a sliding window has overwritten what it sees of them, or
    /// one that knows the sequence as a whole has kept no state from there: some are, of where texts began and ended.
    ///
    /// # Errors
    /// [`Error::Interrupted`] while reading (what was read stands).
    pub fn truncate(&mut self, n: usize) -> Result<()> {
        if n >= self.ids.len() {
            return Ok(());
        }
        self.ids.truncate(n);
        match self.cache.cut(n) {
            kept if kept < n => self.read_again(kept),
            _ => Ok(()),
        }
    }

    /// Forgets the `n_discard` tokens after the first `n_keep` and moves the rest down. The rest is read again where a layer with a sliding
    /// window has overwritten what it sees of the first `n_keep`.
    ///
    /// # Errors
    /// [`Error::Params`] when there are not that many tokens; [`Error::Interrupted`] while reading (what was read stands).
    pub fn shift(&mut self, n_keep: usize, n_discard: usize) -> Result<()> {
        let n_past = self.n_past();
        if n_keep.checked_add(n_discard).is_none_or(|n| n > n_past) {
            return Err(Error::Params(format!("cannot discard {n_discard} tokens after {n_keep}: there are {n_past}")));
        }
        if n_discard == 0 {
            return Ok(());
        }
        let (decoder, n_ctx) = (self.model.decoder(), self.cache.n_ctx());
        let turn = |layer: usize| {
            let Some(attn) = &decoder.layer_of_cache(layer).attn else { return Turn::None };
            match &attn.scores {
                Scores::Own { .. } => Turn::Rope(decoder.ropes[attn.rope].for_context(n_ctx).backwards(n_discard)),
                Scores::Lisa(LisaAttention { low_rank: Some(l), .. }) => Turn::LowRank(&l.freq),
                _ => Turn::None,
            }
        };
        self.ids.drain(n_keep..n_keep + n_discard);
        if self.cache.shift(self.mode.kernels, n_keep, n_discard, n_past, &turn) {
            return Ok(());
        }
        let kept = self.cache.cut(0);
        self.read_again(kept)
    }

    /// Fills the cache from the tokens of the context after the first `kept`.
    fn read_again(&mut self, kept: usize) -> Result<()> {
        let ids = std::mem::take(&mut self.ids);
        self.ids.extend_from_slice(&ids[..kept]);
        while self.n_past() < ids.len() {
            self.pass(self.next_batch(&ids[self.n_past()..]), 0, 0)?;
        }
        self.keep_states(&ids);
        Ok(())
    }

    /// The beginnings and ends of texts are where sequences go on differently: what layers know there is kept.
    fn keep_states(&mut self, ids: &[u32]) {
        if ids.len() > 1 {
            self.cache.keep_states();
        }
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        let n_vocab = self.model.decoder().n_vocab();
        if ids.is_empty() {
            return Err(Error::Impossible("no tokens to process: the prompt is empty".into()));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= n_vocab) {
            return Err(Error::Impossible(format!("token id {id} is outside the vocabulary of {n_vocab}")));
        }
        let n_prompt = self.n_past() + ids.len();
        if n_prompt > self.n_ctx() {
            return Err(Error::ContextFull { n_prompt, n_ctx: self.n_ctx() });
        }
        Ok(())
    }

    /// The tokens of the next pass, so that all passes over `ids` are about equally long.
    fn next_batch<'i>(&self, ids: &'i [u32]) -> &'i [u32] {
        let most = self.n_ubatch.min(self.buffers.max_tokens(self.n_past()));
        let n_passes = ids.len().div_ceil(most);
        &ids[..ids.len().div_ceil(n_passes).next_multiple_of(EVEN).min(most).min(ids.len())]
    }

    /// One forward pass over `ids`, with the final states of the last `n_wanted` and the logits of the last `n_logits`.
    fn pass(&mut self, ids: &[u32], n_wanted: usize, n_logits: usize) -> Result<()> {
        if self.abort.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let (model, mode, buffers, cache) = (self.model.decoder(), &self.mode, &self.buffers, &self.cache);
        // Who looks on sees every operand.
        let n_wanted = if mode.observer.is_some() { ids.len() } else { n_wanted };
        let tokens = Tokens { ids, pos: self.n_past(), n_wanted };
        let pool = match &mut self.pool_batch {
            Some(pool) if ids.len() > 1 => pool,
            _ => &mut self.pool,
        };
        pool.run(|w| {
            forward(model, w, mode, buffers, cache, &tokens);
            if n_logits > 0 {
                head(model, w, mode, buffers, ids.len(), n_wanted - n_logits..n_wanted);
            }
        });
        self.ids.extend_from_slice(ids);
        self.cache.filled(self.ids.len());
        Ok(())
    }
}
