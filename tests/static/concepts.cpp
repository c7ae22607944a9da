// SPDX-License-Identifier: Apache-2.0
#include <type_traits>
#include <utility>

#include "dllm_cache/decoding/denoising_model.hpp"
#include "dllm_cache/decoding/step_model.hpp"
#include "dllm_cache/dllm_cache.hpp"

using namespace dllm_cache;

namespace {

using Const = MatrixView<const float>;
using Mutable = MatrixView<float>;
using Positions = std::span<const std::int32_t>;
using Segments = std::span<const Segment<float>>;

// ---- as_view ----

template <class Matrix>
concept Viewable = requires(Matrix&& matrix) {
  as_view(std::forward<Matrix>(matrix));
};
using Rows2 = RowMajorMatrix<float>;
static_assert(std::is_same_v<decltype(as_view(std::declval<Rows2&>())), Mutable>);
static_assert(std::is_same_v<decltype(as_view(std::declval<const Rows2&>())), Const>);
static_assert(!Viewable<Rows2> && !Viewable<const Rows2>, "a view of a temporary dangles");
static_assert(!Viewable<Eigen::MatrixXf&>, "columns lie together in it");

// ---- TransformerLayer ----

struct GoodLayer {
  void value(Const, Mutable);
  void query_key(Const, Positions, Mutable, Mutable);
  void delta(Const, Const, Segments, Mutable);
};
static_assert(TransformerLayer<GoodLayer, float>);
static_assert(!TransformerLayer<GoodLayer, double>, "computes in another scalar");
static_assert(!TransformerLayer<GoodLayer, float, Eigen::bfloat16>, "stores another scalar");

// A layer that serves any scalar.
struct GenericLayer {
  template <class T>
  void value(MatrixView<const T>, MatrixView<T>) const;
  template <class T>
  void query_key(MatrixView<const T>, Positions, MatrixView<T>, MatrixView<T>) const;
  template <class T, class S>
  void delta(MatrixView<const T>, MatrixView<const T>, std::span<const Segment<S>>,
             MatrixView<T>) const;
};
static_assert(TransformerLayer<GenericLayer, double, Eigen::half>);
static_assert(TransformerLayer<const GenericLayer, float, Eigen::bfloat16>);
static_assert(!TransformerLayer<const GoodLayer, float>, "its functions change it");

struct LayerWithoutValue {
  void query_key(Const, Positions, Mutable, Mutable);
  void delta(Const, Const, Segments, Mutable);
};
static_assert(!TransformerLayer<LayerWithoutValue, float>);
static_assert(!ComputesValues<LayerWithoutValue, float>);
static_assert(ComputesQueriesAndKeys<LayerWithoutValue, float>);
static_assert(ComputesDeltas<LayerWithoutValue, float, float>);

struct LayerWithoutPositions : GoodLayer {
  void query_key(Const, Mutable, Mutable);
};
static_assert(!TransformerLayer<LayerWithoutPositions, float>);

struct LayerThatReturns : GoodLayer {
  bool delta(Const, Const, Segments, Mutable);
};
static_assert(!TransformerLayer<LayerThatReturns, float>);

struct LayerThatWritesItsInput : GoodLayer {
  void value(Mutable, Mutable);
};
static_assert(!TransformerLayer<LayerThatWritesItsInput, float>);

constexpr auto three_lambdas = [] {
  return make_layer([](Const, Mutable) {}, [](Const, Positions, Mutable, Mutable) {},
                    [](Const, Const, Segments, Mutable) {});
};
static_assert(TransformerLayer<decltype(three_lambdas()), float>);
constexpr auto two_in_the_wrong_order = [] {
  return make_layer([](Const, Positions, Mutable, Mutable) {}, [](Const, Mutable) {},
                    [](Const, Const, Segments, Mutable) {});
};
static_assert(!TransformerLayer<decltype(two_in_the_wrong_order()), float>);

// ---- CachePolicy ----

struct GoodPolicy {
  PolicyTraits traits(const SequenceShape&) const;
  void plan(const StepContext&, StepPlan&) const;
};
static_assert(CachePolicy<GoodPolicy>);
static_assert(CachePolicy<NoCache>);
static_assert(CachePolicy<DllmCachePolicy>);
static_assert(CachePolicy<AnyPolicy>);

struct ForgetfulPolicy : GoodPolicy {
  void plan(const StepContext&, StepPlan&);  // not const: a dropped step could leave a trace
};
static_assert(!CachePolicy<ForgetfulPolicy>);
static_assert(DescribesItself<ForgetfulPolicy>);

struct PolicyWithoutTraits {
  void plan(const StepContext&, StepPlan&) const;
};
static_assert(!CachePolicy<PolicyWithoutTraits>);
static_assert(PlansSteps<PolicyWithoutTraits>);

struct PolicyThatReturnsItsPlan : GoodPolicy {
  StepPlan plan(const StepContext&) const;
};
static_assert(!CachePolicy<PolicyThatReturnsItsPlan>);

struct PolicyThatCannotBeCopied : GoodPolicy {
  PolicyThatCannotBeCopied() = default;
  PolicyThatCannotBeCopied(PolicyThatCannotBeCopied&&) = default;
  PolicyThatCannotBeCopied& operator=(PolicyThatCannotBeCopied&&) = default;
};
static_assert(!CachePolicy<PolicyThatCannotBeCopied>);
static_assert(!CachePolicy<int>);

static_assert(std::is_convertible_v<DllmCachePolicy, AnyPolicy>);
static_assert(!std::is_constructible_v<AnyPolicy, PolicyWithoutTraits>);
static_assert(!std::is_constructible_v<AnyPolicy, int>);
static_assert(std::is_nothrow_move_constructible_v<AnyPolicy>);
static_assert(std::is_nothrow_move_assignable_v<AnyPolicy>);
static_assert(std::is_empty_v<NoCache>);

// ---- RowSelector ----

static_assert(RowSelector<VVerifySelector<float>, float, float>);
static_assert(RowSelector<VVerifySelector<double, float>, double, float>);
static_assert(RowSelector<VVerifySelector<float, Eigen::bfloat16>, float, Eigen::bfloat16>);
static_assert(!RowSelector<VVerifySelector<float>, float, Eigen::bfloat16>);
static_assert(!RowSelector<VVerifySelector<float>, double, float>);

struct SelectorWithoutSelect {
  void accumulate(Const, Mutable, std::span<SimilaritySums>);
};
static_assert(!RowSelector<SelectorWithoutSelect, float, float>);
static_assert(AccumulatesSums<SelectorWithoutSelect, float, float>);
struct SelectorThatReturns : SelectorWithoutSelect {
  std::vector<Index> select(std::span<const SimilaritySums>, Index, std::vector<Index>&);
};
static_assert(!RowSelector<SelectorThatReturns, float, float>);

// ---- scalars ----

static_assert(ComputeScalar<float> && ComputeScalar<double>);
static_assert(!ComputeScalar<Eigen::bfloat16> && !ComputeScalar<int> &&
              !ComputeScalar<const float>);
static_assert(StoredScalar<float> && StoredScalar<double> && StoredScalar<Eigen::bfloat16> &&
              StoredScalar<Eigen::half>);
static_assert(!StoredScalar<int> && !StoredScalar<long double>);

// ---- DenoisingModel ----

struct GoodModel {
  ModelShape shape() const;
  Index vocabulary() const;
  Index prediction_shift() const;
  SpecialTokens special_tokens() const;
  void embed(std::span<const std::int32_t>, Mutable);
  GoodLayer layer(Index);
  void logits(Const, Mutable);
};
static_assert(DenoisingModel<GoodModel>);
static_assert(!DenoisingModel<GoodModel, Eigen::half>, "its layers store float");

struct ModelOfReferences : GoodModel {
  GoodLayer& layer(Index);
};
static_assert(DenoisingModel<ModelOfReferences>);

struct ModelWithoutLayers : GoodModel {
  int layer(Index);
};
static_assert(!DenoisingModel<ModelWithoutLayers>);
static_assert(DescribesModel<ModelWithoutLayers> && EmbedsTokens<ModelWithoutLayers> &&
              ComputesLogits<ModelWithoutLayers>);

struct ModelWithoutSpecialTokens : GoodModel {
  void special_tokens() const;
};
static_assert(!DenoisingModel<ModelWithoutSpecialTokens>);

struct ModelWithWordTokens : GoodModel {
  void embed(std::span<const std::string_view>, Mutable);
};
static_assert(!DenoisingModel<ModelWithWordTokens>);

struct ModelWithoutHead : GoodModel {
  void logits(Const);
};
static_assert(!DenoisingModel<ModelWithoutHead>);

// ---- StepModel ----

struct GoodStepModel {
  struct Features {};
  ModelShape shape() const;
  Index vocabulary() const;
  Index prediction_shift() const;
  SpecialTokens special_tokens() const;
  Features make_features(const SequenceShape&, const PolicyTraits&);
  void forward(std::span<SequenceStep<Features>>, Mutable);
};
static_assert(StepModel<GoodStepModel> && !DenoisingModel<GoodStepModel>);
static_assert(!StepModel<GoodModel>);

struct StepModelWithoutLogits : GoodStepModel {
  void forward(std::span<SequenceStep<Features>>);
};
static_assert(MakesFeatures<StepModelWithoutLogits> && !StepModel<StepModelWithoutLogits>);

struct StepModelWithOtherFeatures : GoodStepModel {
  int make_features(const SequenceShape&, const PolicyTraits&);
};
static_assert(CarriesOutSteps<StepModelWithOtherFeatures> &&
              !StepModel<StepModelWithOtherFeatures>);

// ---- FeatureCache, Workspace, Pass ----

template <class Cache>
constexpr bool moves_but_does_not_copy =
    std::is_nothrow_move_constructible_v<Cache>&& std::is_nothrow_move_assignable_v<Cache> &&
    !std::is_copy_constructible_v<Cache> && !std::is_copy_assignable_v<Cache>;
static_assert(moves_but_does_not_copy<FeatureCache<float>>);
static_assert(moves_but_does_not_copy<FeatureCache<double>>);
static_assert(moves_but_does_not_copy<FeatureCache<float, Eigen::bfloat16>>);
static_assert(!std::is_move_constructible_v<Workspace<float>>, "an open pass points at it");
static_assert(!std::is_copy_constructible_v<Workspace<float>>);
static_assert(std::is_nothrow_move_constructible_v<Pass<float>>);
static_assert(!std::is_copy_constructible_v<Pass<float>>);
static_assert(!std::is_move_assignable_v<Pass<float>>);
static_assert(std::copyable<StepPlanner> && std::copyable<StepPlan>);

template <class P, class Layer>
concept TakesLayer = requires(P& pass, Layer layer, Mutable x) {
  pass.layer(layer, x);
};
static_assert(TakesLayer<Pass<float>, GoodLayer>);
static_assert(!TakesLayer<Pass<float>, LayerWithoutValue>);
static_assert(!TakesLayer<Pass<float, Eigen::half>, GoodLayer>);

// ---- views and ranges ----

static_assert(std::is_trivially_copyable_v<Const> && sizeof(Const) == 4 * sizeof(void*));
static_assert(std::is_convertible_v<Mutable, Const>);
static_assert(!std::is_convertible_v<Const, Mutable>);
static_assert(Range{2, 5}.size() == 3 && !Range{2, 5}.empty() && Range{2, 2}.empty());
static_assert(Range{2, 5}.contains(2) && Range{2, 5}.contains(4) && !Range{2, 5}.contains(5) &&
              !Range{2, 5}.contains(1));

}  // namespace
