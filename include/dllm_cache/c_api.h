/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DLLM_CACHE_C_API_H
#define DLLM_CACHE_C_API_H

#include <stddef.h>
#include <stdint.h>

/// @file
/// Plans for C, C++ before C++20 and other languages: which rows a runtime with keys and values of
/// its own computes in a step. C99; compile packaging/c_api/dllm_cache.cpp (C++20, without Eigen)
/// beside it.
///
/// Rows are token positions of one sequence, prompt first, counted from 0; layers, steps and places
/// are counted from 0 too. Ranges are half-open: `begin` is in them, `end` is not. Flags are 0 or
/// 1.
///
/// Functions return a status; where it is not DLLM_OK nothing has changed, unless they say
/// otherwise, and dllm_last_error() tells what was wrong, what is legal and what was found. No
/// exception leaves them. A null pointer is refused as DLLM_INVALID_ARGUMENT where nothing else is
/// said.
///
/// Structs begin with `size`, which the caller sets to `sizeof` of the struct, so that later
/// versions can add fields at their ends: fields behind `size` bytes count as 0, and are not
/// written. A `size` below that of the first version, or above what the library knows, is refused.
///
/// Different planners may be used from different threads; one planner belongs to one thread at a
/// time. All other functions may be called from any thread. After its largest step a planner
/// allocates nothing in steps.

/// Goes in front of every function: what exports it from a shared library, where one is made.
#ifndef DLLM_API
#define DLLM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* NOLINTBEGIN(readability-identifier-naming): names as C has them. */

/// What came of a call.
typedef enum dllm_status {
  DLLM_OK = 0,
  DLLM_INVALID_ARGUMENT = 1,  ///< A value outside its range, a missing input, a null pointer.
  DLLM_INVALID_CALL = 2,      ///< A call out of order, or a plan that cannot be carried out.
  DLLM_BAD_SNAPSHOT = 3,      ///< Damaged, or of another policy, shape or version.
  DLLM_NO_MEMORY = 4,
  DLLM_UNKNOWN = 5  ///< Anything else; tell the authors.
} dllm_status;

/// Version of the library, "MAJOR.MINOR.PATCH".
DLLM_API const char* dllm_version(void);

/// What was wrong with the last call of this thread that failed, or "": valid until the next one
/// fails; at most 1023 bytes.
DLLM_API const char* dllm_last_error(void);

/* Policies ------------------------------------------------------------------------------------ */

/// A policy or preset of the table. All texts are constant.
typedef struct dllm_policy_info {
  size_t size;
  const char* name;         ///< What dllm_planner_create() takes.
  const char* description;  ///< One line.
  const char* policy;       ///< Its own name, or that of the policy which a preset stands for.
  size_t option_count;
  int64_t listed;  ///< Flag: lists can say what it asks for; 0: dllm_planner_create() refuses it,
                   ///< as it decides between layers or verifies rows by a feature of its own.
  int64_t hides_rows;  ///< Flag: it may hide rows; see dllm_shape.hides_rows.
} dllm_policy_info;

/// Kinds of values that options take.
typedef enum dllm_option_kind {
  DLLM_FLAG = 0,     ///< true or false
  DLLM_INTEGER = 1,  ///< Digits.
  DLLM_NUMBER = 2,   ///< Digits with a point or an exponent.
  DLLM_WORD = 3,     ///< One of the words that the legal values list.
  DLLM_ROWS = 4      ///< Lists of rows, one for each block: "36 40;52;".
} dllm_option_kind;

/// An option of a policy. All texts are constant.
typedef struct dllm_option_info {
  size_t size;
  const char* name;   ///< In front of `=` in option texts.
  const char* help;   ///< A few words.
  const char* legal;  ///< "in [0, 1]", "at least 1 or never"
  const char* value;  ///< Its default here, as text; null: not given.
  int64_t kind;       ///< A dllm_option_kind.
} dllm_option_info;

/// Policies and presets in the table, at least 1; 0 where there is no memory to make it.
DLLM_API size_t dllm_policy_count(void);
/// The entry `index` of the table, below dllm_policy_count().
DLLM_API dllm_status dllm_policy_at(size_t index, dllm_policy_info* info);
/// The option `option` of that entry, below its `option_count`.
DLLM_API dllm_status dllm_option_at(size_t index, size_t option, dllm_option_info* info);

/* Planners ------------------------------------------------------------------------------------ */

/// Plans the steps of one sequence; it holds a policy, the step counter and what is stored of each
/// row, but no features.
typedef struct dllm_planner dllm_planner;

/// Shape of a sequence: prompt rows `[0, prompt)`, response rows behind them.
typedef struct dllm_shape {
  size_t size;
  int64_t prompt;            ///< Rows, in [0, 2^31].
  int64_t response;          ///< Rows, in [0, 2^31]; one row or more in all.
  int64_t prediction_shift;  ///< Row `i - shift` predicts token `i`: LLaDA 0, Dream 1; <= prompt.
  int64_t attention_block;   ///< Rows a block of block-causal attention; 0: bidirectional.
  int64_t attention_phase;   ///< A row at which a block of attention begins, in [0, rows].
  int64_t causal_commit;     ///< Flag: rows before the active block see none behind their own.
  const int32_t* positions;  ///< Rotary position of every row, copied; null: 0, 1, 2, ...
  int64_t hides_rows;        ///< Flag: the runtime leaves hidden rows out of attention (see
                             ///< dllm_step.seen); 0: policies that hide any are refused.
} dllm_shape;

/// Rows counted over steps, and over layers too where that is said.
typedef struct dllm_counts {
  int64_t rows;        ///< Rows in the pass.
  int64_t values;      ///< Values computed, over steps and layers.
  int64_t recomputed;  ///< Rows whose key, query and delta are computed, over steps and layers;
                       ///< rows that a threshold leaves alone are counted.
} dllm_counts;

/// Where a planner stands, and what its policy asks for.
typedef struct dllm_planner_info {
  size_t size;
  const char* policy;             ///< Name of the policy; valid as long as the planner.
  int64_t rows;                   ///< Rows of the sequence.
  int64_t layers;                 ///< Layers of the model.
  int64_t step;                   ///< Committed steps.
  int64_t stale;                  ///< Flag: the next step recomputes all rows.
  int64_t step_open;              ///< Flag: a step was begun and has not ended.
  dllm_counts counts;             ///< Work of the committed steps.
  int64_t stored_deltas_begin;    ///< Rows whose deltas (what a layer adds to them) must be kept,
  int64_t stored_deltas_end;      ///< as the policy may reuse or verify them; empty: keys and
                                  ///< values are enough.
  int64_t keeps_features;         ///< Flag; 0: every row is recomputed at every step.
  int64_t needs_block;            ///< Flags: fields of dllm_step_input that a step must have.
  int64_t needs_masked;           ///<
  int64_t needs_changed;          ///<
  int64_t needs_confidence;       ///<
  int64_t needs_unchanged_steps;  ///<
  int64_t needs_candidates;       ///<
  int64_t needs_entropy;          ///<
  int64_t needs_gap;              ///<
  int64_t needs_change;           ///<
  int64_t predicts_all;           ///< Flag: in the first step the predictions of all masked rows
                                  ///< are wanted, not of those alone that may be committed.
  int64_t hides_rows;             ///< Flag: its steps may hide rows.
} dllm_planner_info;

/// Makes a planner for a model of `layers >= 1` layers, to be given to dllm_planner_destroy().
/// `policy` is a name of the table, `options` "name=value,name=value" or null: a name that is not
/// the policy's, a value outside its range and a second value are refused. So are policies that
/// decide between layers or verify rows by a feature of their own: lists cannot say it.
DLLM_API dllm_status dllm_planner_create(const char* policy, const char* options,
                                         const dllm_shape* shape, int64_t layers,
                                         dllm_planner** planner);
/// Frees a planner and its lists; null: nothing.
DLLM_API void dllm_planner_destroy(dllm_planner* planner);
/// Makes an independent copy; refused as DLLM_INVALID_CALL while a step is open.
DLLM_API dllm_status dllm_planner_clone(const dllm_planner* planner, dllm_planner** copy);
/// Where the planner stands.
DLLM_API dllm_status dllm_planner_get_info(const dllm_planner* planner, dllm_planner_info* info);

/// Begins a new sequence with the same policy and layers; refused as DLLM_INVALID_CALL while a step
/// is open.
DLLM_API dllm_status dllm_planner_reset(dllm_planner* planner, const dllm_shape* shape);
/// Goes on with a longer or shorter shape: rows `[0, keep)` keep what is stored of them, later ones
/// have nothing. The planner is stale where attention is bidirectional. `keep` is in [0, the rows
/// of either shape], kept rows have the same positions; refused as DLLM_INVALID_CALL while a step
/// is open.
DLLM_API dllm_status dllm_planner_reshape(dllm_planner* planner, const dllm_shape* shape,
                                          int64_t keep);
/// Features may not be read: the next step recomputes all rows. Refused as DLLM_INVALID_CALL while
/// a step is open.
DLLM_API dllm_status dllm_planner_mark_stale(dllm_planner* planner);

/* Steps --------------------------------------------------------------------------------------- */

/// What the caller knows before a step. Arrays have one entry a row, or are null: not known; they
/// are read during the call alone.
typedef struct dllm_step_input {
  size_t size;
  int64_t block_begin;              ///< Rows of the active block; both 0: the whole response.
  int64_t block_end;                ///< At most the rows of the sequence.
  int64_t block_step;               ///< Steps done in the block, at least 0.
  int64_t block_done;               ///< Flag: nothing is to be found in the block any more, the
                                    ///< step stores its final features.
  const uint8_t* masked;            ///< Flags: the row's token is still the mask.
  const uint8_t* changed;           ///< Flags: it changed since the last committed step.
  const float* confidence;          ///< Last known confidence of the row's prediction.
  const uint16_t* unchanged_steps;  ///< Committed steps since it changed; 65535: longer, or never.
  const uint8_t* given;             ///< Flags: it was given and never changes; null: the prompt's.
  const uint8_t* candidates;        ///< Flags: the row's token may be committed after this step.
  const float* entropy;             ///< Of the row's last prediction, in nats; 0: there was none.
  const float* gap;                 ///< Its likeliest probability less the second, in [0, 1].
  const float* change;  ///< Its KL divergence from the one before, in nats; infinity: none.
} dllm_step_input;

/// Rows that one kind of layer computes: the verified ones, ascending, then those that are
/// recomputed in any case, ascending.
typedef struct dllm_rows {
  const int32_t* places;  ///< Of each, its row of the hidden states.
  const int32_t* rows;    ///< Of each, its row of the sequence: of keys, values and deltas.
  int32_t count;          ///< Rows in all: values are computed of these.
  int32_t verified;       ///< The first so many are verified.
} dllm_rows;

/// The numbers that the shapes of a step's graph depend on: equal bytes, the same graph.
typedef struct dllm_sizes {
  int32_t rows;          ///< Rows in the pass.
  int32_t verified;      ///< Rows verified in a cached layer,
  int32_t verify_count;  ///< of which so many are selected, or fewer with a threshold;
  int32_t recomputed;    ///< rows recomputed there in any case.
  int32_t first_cached;  ///< Cached layers; in the others every row in the pass is recomputed.
  int32_t end_cached;    ///<
  int32_t keys;          ///< One past the last row whose key any row in the pass may see.
  int32_t threshold;     ///< Flag: similar rows are left alone.
  int32_t seen;          ///< How many keys exist where rows are hidden; else -1.
  int32_t layer_counts;  ///< Flag: layers select different numbers of rows.
} dllm_sizes;

/// A step as lists. They belong to the planner and are valid until its next dllm_step_begin() or
/// its end; rows that are not in the pass are seen as their keys and values were stored last.
typedef struct dllm_step {
  size_t size;
  const int32_t* rows;          ///< Rows in the pass, ascending: one a row of hidden states.
  const int32_t* positions;     ///< Rotary position of each of them.
  const int32_t* key_ends;      ///< One past the last row whose key each of them sees; the first
                                ///< is row 0.
  dllm_rows cached;             ///< What layers in `[first_cached, end_cached)` compute.
  dllm_rows plain;              ///< What the others compute: all in the pass, none verified.
  int32_t row_count;            ///< Entries of `rows`, `positions` and `key_ends`.
  int32_t layers;               ///< Layers of the model.
  int32_t first_cached;         ///< Cached layers.
  int32_t end_cached;           ///<
  int32_t keys;                 ///< The largest of `key_ends`, or 0.
  int32_t verify_count;         ///< Rows selected in each cached layer; of these,
  double similarity_threshold;  ///< those as similar (cosine) are left alone; infinity: none.
  dllm_sizes sizes;             ///< Key to reuse a graph by.
  dllm_counts counts;           ///< Work of the step.
  const int32_t* seen;          ///< Rows below `keys` that exist, ascending, where some are hidden:
                                ///< keys of others are seen by nobody; null: none is hidden.
  const int32_t* layer_counts;  ///< `verify_count` of each layer; null: the same in all.
  int32_t seen_count;           ///< Entries of `seen`.
} dllm_step;

/// Begins a step and fills its lists. An input that is malformed or lacks what the policy needs is
/// DLLM_INVALID_ARGUMENT; an open step is DLLM_INVALID_CALL. Lists of the step before are gone even
/// when it fails.
DLLM_API dllm_status dllm_step_begin(dllm_planner* planner, const dllm_step_input* input,
                                     dllm_step* step);
/// The open step was carried out: it counts. DLLM_INVALID_CALL when none is open.
DLLM_API dllm_status dllm_step_commit(dllm_planner* planner);
/// The open step is taken back before anything was computed: no trace is left. Without one:
/// nothing.
DLLM_API dllm_status dllm_step_cancel(dllm_planner* planner);
/// The open step broke in the middle, features are a mixture: it does not count, and the next one
/// recomputes all rows. Without one: the planner is stale.
DLLM_API dllm_status dllm_step_drop(dllm_planner* planner);

/// Sums over one row's fresh and stored values, both as stored: enough for their cosine. A runtime
/// that is split over devices adds them up.
typedef struct dllm_sums {
  double dot;            ///< fresh . stored
  double fresh_square;   ///< fresh . fresh
  double stored_square;  ///< stored . stored
} dllm_sums;

/// Which verified rows of a cached layer are recomputed: the `count` least similar of `verified`
/// rows, in [0, verified], but none that is at least as similar as `threshold` (any number but
/// NaN). Ties go to the lower row, NaN comes first.
///
/// `sums` are those of the step's `cached.rows`, in order. Writes numbers of entries of `sums`,
/// ascending, to `selected`, which has room for `count`, and how many to `selected_count`. Either
/// array may be null where its count is 0. Keeps scratch memory for each thread.
DLLM_API dllm_status dllm_select(const dllm_sums* sums, size_t verified, size_t count,
                                 double threshold, int32_t* selected, size_t* selected_count);

/* Snapshots ----------------------------------------------------------------------------------- */

/// Writes policy, options, shape, step counter and counts, between two steps, to `buffer`, which
/// has room for `capacity` bytes; `needed` is set to the bytes it takes. A null buffer with
/// capacity 0 asks for these; one that is too small is DLLM_INVALID_ARGUMENT. An open step is
/// DLLM_INVALID_CALL.
DLLM_API dllm_status dllm_planner_save(const dllm_planner* planner, void* buffer, size_t capacity,
                                       size_t* needed);
/// Goes on where the saved planner stood; the next step recomputes all rows, as no features are
/// saved. The planner must have the same policy, options, shape and layers: else, and where bytes
/// are damaged or missing, DLLM_BAD_SNAPSHOT. Bytes behind the snapshot are not read. An open step
/// is DLLM_INVALID_CALL.
DLLM_API dllm_status dllm_planner_restore(dllm_planner* planner, const void* bytes, size_t size);

/* NOLINTEND(readability-identifier-naming) */

#ifdef __cplusplus
}
#endif

#endif
