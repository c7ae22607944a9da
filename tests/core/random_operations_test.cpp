// SPDX-License-Identifier: Apache-2.0
// Random sequences of operations, carried out by the library and by PlainFeatures side by side.
#include <catch2/catch.hpp>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/cached_run.hpp"
#include "tests/support/plain_features.hpp"
#include "tests/support/random_policies.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

// Says what went wrong; the operations that led to it are in the log.
struct Disagreement : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void expect(bool agreed, const char* what) {
  if (!agreed) throw Disagreement(what);
}

// A sequence as a decoding loop sees it: tokens, and what is told to the policy.
struct Story {
  SequenceShape shape;  // without positions
  std::vector<std::int32_t> positions;
  std::vector<Index> tokens;
  std::vector<std::uint8_t> masked, changed, candidates;
  std::vector<std::uint16_t> unchanged_steps;
  std::vector<float> confidence, entropy;
  Range block;
  Index block_step = 0;
  bool block_done = false;

  explicit Story(RandomNumbers& random) {
    constexpr Index sizes[] = {0, 1, 2, 3, 5, 8, 13};
    shape.prompt = sizes[random.below(7)];
    shape.response = sizes[random.below(7)];
    if (shape.rows() == 0) shape.response = 1;
    shape.prediction_shift = random.below(std::min<Index>(shape.prompt, 2) + 1);
    if (random.below(3) == 0) {
      shape.attention_block = 1 + random.below(shape.rows() + 2);
      shape.attention_phase = random.below(shape.rows() + 1);
      shape.causal_commit = random.below(4) == 0;
    }
    const auto rows = static_cast<std::size_t>(shape.rows());
    if (random.below(4) == 0)
      for (std::size_t row = 0; row < rows; ++row)
        positions.push_back(static_cast<std::int32_t>(random.below(2000) - 1000));
    tokens.assign(rows, 12);
    for (Index row = 0; row < shape.prompt; ++row)
      tokens[static_cast<std::size_t>(row)] = random.below(12);
    changed.assign(rows, 0);
    unchanged_steps.assign(rows, 65535);
    confidence.assign(rows, 0.0F);
    entropy.assign(rows, 0.0F);
    choose_block(random);
    look_at_tokens();
  }

  [[nodiscard]] SequenceShape full_shape() const {
    SequenceShape full = shape;
    full.positions = positions;
    return full;
  }

  void choose_block(RandomNumbers& random) {
    // In the response as a rule; anywhere where there is none, and sometimes.
    const bool inside = shape.response > 0 && random.below(4) > 0;
    const Index from = inside ? shape.prompt : 0;
    const Index begin = from + random.below(shape.rows() - from);
    block = {begin, begin + 1 + random.below(shape.rows() - begin)};
    block_step = random.below(4) == 0 ? random.below(4) : 0;
    block_done = shape.attention_block > 0 && random.below(5) == 0;
  }

  // Other lengths, with the same first rows. Returns how many of them keep their features.
  Index reshape(RandomNumbers& random) {
    const Index old = shape.rows();
    shape.response = std::max<Index>(shape.response + random.below(7) - 2, 0);
    if (random.below(4) == 0) {  // the answer is part of the next prompt
      shape.prompt += shape.response;
      shape.response = random.below(5);
    }
    if (shape.rows() == 0) shape.response = 1;
    if (shape.attention_phase > shape.rows()) shape.attention_phase = 0;
    if (shape.attention_block > 0 && random.below(4) == 0)
      shape.attention_phase = random.below(shape.rows() + 1);
    const auto rows = static_cast<std::size_t>(shape.rows());
    const Index keep = random.below(2) == 0 ? std::min(old, shape.rows())
                                            : random.below(std::min(old, shape.rows()) + 1);
    if (!positions.empty()) positions.resize(rows, 7);
    tokens.resize(rows, 12);
    changed.resize(rows, 0);
    for (std::size_t row = static_cast<std::size_t>(keep); row < rows; ++row) changed[row] = 0;
    unchanged_steps.resize(rows, 65535);
    confidence.resize(rows, 0.0F);
    entropy.resize(rows, 0.0F);
    choose_block(random);
    look_at_tokens();
    return keep;
  }

  void look_at_tokens() {
    masked.clear();
    candidates.clear();
    for (const Index token : tokens) {
      masked.push_back(token == 12 ? 1 : 0);
      const auto row = static_cast<Index>(candidates.size());
      candidates.push_back(token == 12 && block.contains(row) ? 1 : 0);
    }
  }

  void change_tokens(RandomNumbers& random) {
    for (Index i = random.below(4); i > 0; --i) {
      const auto row = static_cast<std::size_t>(random.below(shape.rows()));
      tokens[row] = random.below(13);
      changed[row] = 1;
      unchanged_steps[row] = 0;
    }
    for (float& one : confidence) one = static_cast<float>(random.signed_unit());
    for (float& one : entropy) one = static_cast<float>(random.unit());
    if (random.below(3) == 0) choose_block(random);
    look_at_tokens();
  }

  void step_done() {
    std::fill(changed.begin(), changed.end(), std::uint8_t{0});
    for (std::uint16_t& steps : unchanged_steps)
      if (steps < 65535) ++steps;
    ++block_step;
  }

  [[nodiscard]] StepInput input() const {
    return {.block = block,
            .block_step = block_step,
            .masked = masked,
            .changed = changed,
            .confidence = confidence,
            .unchanged_steps = unchanged_steps,
            .block_done = block_done,
            .candidates = candidates,
            .entropy = entropy};
  }
};

template <class Stored>
class RandomRun {
  using Model = TinyModel<float, Stored>;
  using Cache = FeatureCache<float, Stored>;
  using Plain = PlainFeatures<float, Stored>;

  struct Sequence {
    Story story;
    Cache cache;
    Plain plain;
    int number;
  };
  struct Snapshot {
    Story story;
    Plain plain;
    std::vector<std::byte> bytes;
  };

 public:
  explicit RandomRun(std::uint64_t seed)
      : m_random(seed),
        m_model(1 + m_random.below(3), m_random.next(), kv_heads[m_random.below(4)],
                widths[m_random.below(3)]),
        m_shape(m_model.shape()) {
    m_shape.row_multiple = row_multiples[m_random.below(4)];
  }

  void run() {
    add();
    for (Index left = 10 + m_random.below(60); left > 0; --left) {
      if (m_sequences.empty()) add();
      switch (m_random.below(22)) {
        case 0:
        case 1:
          add();
          break;
        case 2:
          remove();
          break;
        case 3:
          clone();
          break;
        case 4:
          reset();
          break;
        case 5:
          mark_stale();
          break;
        case 6:
        case 7:
          save();
          break;
        case 8:
          restore();
          break;
        case 9:
          restore_damaged();
          break;
        case 10:
          malformed_input();
          break;
        case 11:
          move();
          break;
        case 12:
          fork();
          break;
        case 13:
          reshape();
          break;
        default:
          step();
      }
      for (const auto& one : m_sequences) compare(*one);
    }
  }
  [[nodiscard]] std::string log() const { return m_log.str(); }
  [[nodiscard]] Index steps() const { return m_steps; }

 private:
  static constexpr Index kv_heads[] = {1, 2, 3, 9}, widths[] = {1, 6, 35},
                         row_multiples[] = {1, 1, 3, 16};

  Sequence& any() { return *m_sequences[static_cast<std::size_t>(any_index())]; }
  Index any_index() { return m_random.below(static_cast<Index>(m_sequences.size())); }

  void add(Story story, const AnyPolicy& policy) {
    Cache cache(m_shape, story.full_shape(), policy, &m_memory);
    Plain plain(m_model, story.full_shape(), policy);
    m_sequences.push_back(std::make_unique<Sequence>(
        Sequence{std::move(story), std::move(cache), std::move(plain), m_next++}));
  }
  void add() {
    if (m_sequences.size() == 4) return;
    Story story(m_random);
    const AnyPolicy policy = random_policy(m_random);
    m_log << "add #" << m_next << ": " << policy.traits(story.shape).name << " ("
          << policy.options().value_or("?") << "), prompt " << story.shape.prompt << ", response "
          << story.shape.response << ", shift " << story.shape.prediction_shift
          << ", attention_block " << story.shape.attention_block << " from "
          << story.shape.attention_phase << (story.positions.empty() ? "" : ", own positions")
          << '\n';
    add(std::move(story), policy);
  }
  void remove() {
    const Index index = any_index();
    m_log << "remove #" << m_sequences[static_cast<std::size_t>(index)]->number << '\n';
    m_sequences.erase(m_sequences.begin() + index);
  }
  void clone() {
    if (m_sequences.size() == 4) return;
    const Sequence& one = any();
    m_log << "clone #" << one.number << " as #" << m_next << '\n';
    m_sequences.push_back(
        std::make_unique<Sequence>(Sequence{one.story, one.cache.clone(), one.plain, m_next++}));
  }
  void fork() {
    if (m_sequences.size() == 4) return;
    Sequence& one = any();
    m_log << "fork #" << one.number << " as #" << m_next << '\n';
    m_sequences.push_back(
        std::make_unique<Sequence>(Sequence{one.story, one.cache.fork(), one.plain, m_next++}));
  }
  void reshape() {
    Sequence& one = any();
    const Index keep = one.story.reshape(m_random);
    m_log << "reshape #" << one.number << ": prompt " << one.story.shape.prompt << ", response "
          << one.story.shape.response << ", phase " << one.story.shape.attention_phase << ", keep "
          << keep << '\n';
    one.cache.reshape(one.story.full_shape(), keep);
    one.plain.reshape(one.story.full_shape(), keep);
  }
  void reset() {
    Sequence& one = any();
    one.story = Story(m_random);
    m_log << "reset #" << one.number << ": prompt " << one.story.shape.prompt << ", response "
          << one.story.shape.response << '\n';
    one.cache.reset(one.story.full_shape());
    one.plain.reset(one.story.full_shape());
  }
  void mark_stale() {
    Sequence& one = any();
    m_log << "mark_stale #" << one.number << '\n';
    one.cache.mark_stale();
    one.plain.forget();
  }
  void move() {
    Sequence& one = any();
    m_log << "move #" << one.number << '\n';
    Cache moved = std::move(one.cache);
    one.cache = std::move(moved);
  }
  void save() {
    const Sequence& one = any();
    m_log << "save #" << one.number << '\n';
    m_snapshot.emplace(Snapshot{one.story, one.plain, {}});
    one.cache.save(m_snapshot->bytes);
  }
  // Into a new cache, or into one of the same policy that has gone on since.
  void restore() {
    if (!m_snapshot) return;
    Sequence* into = nullptr;
    for (const auto& one : m_sequences)
      if (same_kind(one->plain, m_snapshot->plain)) into = one.get();
    if (into == nullptr) {
      if (m_sequences.size() == 4) return;
      add(m_snapshot->story, m_snapshot->plain.policy());
      into = m_sequences.back().get();
    }
    m_log << "restore into #" << into->number << '\n';
    into->cache.restore(m_snapshot->bytes);
    into->story = m_snapshot->story;
    into->plain = m_snapshot->plain;
  }
  // It keeps its step, and is as it was or stale.
  void restore_damaged() {
    if (!m_snapshot) return;
    std::vector<std::byte> bytes = m_snapshot->bytes;
    if (m_random.below(2) == 0)
      bytes.resize(static_cast<std::size_t>(m_random.below(static_cast<Index>(bytes.size()))));
    else
      bytes[static_cast<std::size_t>(m_random.below(static_cast<Index>(bytes.size())))] ^=
          static_cast<std::byte>(1 + m_random.below(255));
    Sequence& one = any();
    m_log << "restore a damaged snapshot into #" << one.number << '\n';
    bool refused = false;
    try {
      one.cache.restore(bytes);
    } catch (const std::runtime_error&) {
      refused = true;
    }
    expect(refused, "a damaged snapshot was taken");
    if (one.cache.stale() && !one.plain.stale()) one.plain.forget();
  }
  static bool same_kind(const Plain& a, const Plain& b) {
    const SequenceShape one = a.shape(), other = b.shape();
    return one.prompt == other.prompt && one.response == other.response &&
           one.prediction_shift == other.prediction_shift &&
           one.attention_block == other.attention_block &&
           one.attention_phase == other.attention_phase &&
           one.causal_commit == other.causal_commit &&
           std::ranges::equal(one.positions, other.positions) &&
           a.policy().traits(one).name == b.policy().traits(one).name &&
           a.policy().options() == b.policy().options();
  }

  void malformed_input() {
    Sequence& one = any();
    m_log << "malformed input for #" << one.number << '\n';
    StepInput input = one.story.input();
    std::vector<std::uint8_t> long_by_one(one.story.masked.size() + 1);
    switch (m_random.below(4)) {
      case 0:
        input.masked = long_by_one;
        break;
      case 1:
        input.changed = long_by_one;
        break;
      case 2:
        input.block.end = one.story.shape.rows() + 1;
        break;
      default:
        input.block_step = -1;
    }
    // Last of a batch: those before it have begun their steps by then.
    std::vector<Cache*> caches;
    std::vector<StepInput> inputs;
    for (const auto& other : m_sequences)
      if (other.get() != &one && other->plain.plan(other->story.input())) {
        caches.push_back(&other->cache);
        inputs.push_back(other->story.input());
      }
    caches.push_back(&one.cache);
    inputs.push_back(input);
    bool refused = false;
    try {
      auto pass = m_workspace.begin_step(caches, inputs);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    expect(refused, "a malformed input was taken");
  }

  void step() {
    // A random batch in random order, and the plan of each.
    std::vector<Sequence*> batch;
    for (const auto& one : m_sequences)
      if (m_random.below(3) > 0)
        batch.insert(batch.begin() + m_random.below(static_cast<Index>(batch.size()) + 1),
                     one.get());
    if (batch.empty()) batch.push_back(m_sequences.front().get());
    std::vector<Cache*> caches;
    std::vector<StepInput> inputs;
    std::vector<StepPlan> plans;
    std::vector<Sequence*> refused;
    m_log << "step";
    for (Sequence* one : batch) {
      one->story.change_tokens(m_random);
      caches.push_back(&one->cache);
      inputs.push_back(one->story.input());
      m_log << " #" << one->number << " [" << one->story.block.begin << ", " << one->story.block.end
            << ") " << one->story.block_step;
      if (auto plan = one->plain.plan(inputs.back())) {
        plans.push_back(std::move(*plan));
      } else {
        refused.push_back(one);
        m_log << " (refused: " << one->plain.refusal() << ')';
      }
    }
    m_log << '\n';
    Workspace<float, Stored>& workspace = m_random.below(4) == 0 ? m_other_workspace : m_workspace;
    if (!refused.empty()) {
      bool thrown = false;
      try {
        auto pass = workspace.begin_step(caches, inputs);
      } catch (const std::logic_error&) {
        thrown = true;
      }
      expect(thrown, "a plan was taken that cannot be carried out");
      for (Sequence* one : refused) {
        // Published caches fit every input, unless attention hides rows from them.
        expect(one->story.shape.attention_block > 0 || may_be_refused(one->plain),
               "a published cache made a plan that cannot be carried out");
        one->cache.mark_stale();
        one->plain.forget();
      }
      return;
    }
    auto pass = workspace.begin_step(caches, inputs);
    const Index fate = m_random.below(10);
    if (fate == 0) return drop(std::move(pass), batch);
    std::vector<Matrix<float>> all;
    all.reserve(batch.size());
    for (Sequence* one : batch) all.push_back(m_model.embed(one->story.tokens));
    CallLog calls;
    std::vector<Told> told;
    RandomMemories::told = &told;
    if (fate == 1) calls.throw_at = m_random.below(3 * m_model.shape().layers);
    std::vector<PassRows<float>> in_pass;
    try {
      in_pass = run_pass(pass, m_model, all, &calls, m_random.below(2) * 3);
    } catch (const CallbackError&) {
      m_log << "  callback " << calls.throw_at << " threw\n";
      RandomMemories::told = nullptr;
      for (Sequence* one : batch) one->plain.forget();
      return;
    }
    RandomMemories::told = nullptr;
    expect(calls.broken_rule.empty(), calls.broken_rule.c_str());
    std::vector<Sequence*> watchers;
    for (Sequence* one : batch)
      if (watches(one->plain)) watchers.push_back(one);
    for (std::size_t i = 0; i < batch.size(); ++i) {
      Sequence& one = *batch[i];
      std::vector<Told> again;
      RandomMemories::told = &again;
      one.plain.step(plans[i], all[i]);
      RandomMemories::told = nullptr;
      one.story.step_done();
      if (in_pass[i].rows != Plain::rows_in_pass(plans[i]))
        throw Disagreement(base::text("other rows were in the pass in #", one.number));
      for (const Index row : in_pass[i].rows)
        if (pass.find(row, static_cast<Index>(i)).has_value() !=
            (one.plain.ends()[static_cast<std::size_t>(row)] == m_model.shape().layers))
          throw Disagreement(base::text("row ", row, " of #", one.number, " ended, or did not"));
      if (const auto row = first_difference(in_pass[i], all[i]))
        throw Disagreement(base::text("row ", *row, " of #", one.number, " differs"));
      // The library tells all sequences of a layer, then those of the next.
      const auto place = std::find(watchers.begin(), watchers.end(), &one) - watchers.begin();
      for (std::size_t layer = 0; layer < again.size(); ++layer) {
        const Told& got = told.at(layer * watchers.size() + static_cast<std::size_t>(place));
        if (!got.agrees(again[layer]))
          throw Disagreement(base::text('#', one.number, " was told:\n", got.text(), "\nplainly:\n",
                                        again[layer].text(), '\n'));
      }
      ++m_steps;
    }
  }

  static bool may_be_refused(const Plain& plain) {
    // Who hides rows relies on a first step of each block.
    const PolicyTraits traits = plain.policy().traits(plain.shape());
    return traits.name.starts_with("random") || traits.hides_rows;
  }
  static bool watches(const Plain& plain) { return plain.policy().watches_layers(); }

  void drop(typename Workspace<float, Stored>::PassType pass, const std::vector<Sequence*>& batch) {
    const Index layers = m_random.below(m_model.shape().layers);
    m_log << "  dropped after " << layers << " layers\n";
    Matrix<float> x(pass.row_count(), m_model.shape().width);
    for (Index number = 0; number < layers; ++number) pass.layer(m_model.layer(number), x.view());
    for (Sequence* one : batch) one->plain.forget();
  }

  static void compare(const Sequence& one) {
    const char* const wrong = one.cache.stale() != one.plain.stale()     ? "is stale, or is not"
                              : one.cache.step() != one.plain.steps()    ? "counts other steps"
                              : one.cache.counts() != one.plain.counts() ? "counts other rows"
                                                                         : nullptr;
    if (wrong != nullptr) throw Disagreement(base::text('#', one.number, ' ', wrong));
  }

  RandomNumbers m_random;
  Model m_model;
  ModelShape m_shape;  // of the caches: rows in memory may be padded
  NanResource m_memory;
  Workspace<float, Stored> m_workspace{&m_memory}, m_other_workspace{&m_memory};
  std::vector<std::unique_ptr<Sequence>> m_sequences;
  std::optional<Snapshot> m_snapshot;
  std::ostringstream m_log;
  int m_next = 0;
  Index m_steps = 0;
};

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

template <class Stored>
Index run_one(std::uint64_t seed) {
  RandomRun<Stored> run(seed);
  try {
    run.run();
  } catch (const std::exception& error) {
    FAIL_CHECK(error.what() << "; alone: DLLM_CACHE_RANDOM_SEED=" << seed << '\n' << run.log());
  }
  return run.steps();
}

// DLLM_CACHE_RANDOM_RUNS: how many seeds; DLLM_CACHE_RANDOM_SEED: one alone.
template <class Stored>
void run_all() {
  const std::uint64_t runs = number_from("DLLM_CACHE_RANDOM_RUNS", 240);
  const std::uint64_t first = number_from("DLLM_CACHE_RANDOM_SEED", 0);
  const bool one = std::getenv("DLLM_CACHE_RANDOM_SEED") != nullptr;
  Index steps = 0;
  for (std::uint64_t seed = first; seed < (one ? first + 1 : runs); ++seed)
    steps += run_one<Stored>(seed);
  CHECK((one || steps > static_cast<Index>(runs)));  // they did something
}

}  // namespace

TEST_CASE("Random operations: the library does what plain features do, bit by bit", "[random]") {
  run_all<float>();
}

TEST_CASE("Random operations: the same with features in bfloat16", "[random]") {
  run_all<Eigen::bfloat16>();
}
