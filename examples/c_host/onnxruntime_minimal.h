/* The parts of ONNX Runtime's C API that main.c uses, so that it builds where only the shared library of
 * ONNX Runtime is at hand, as in its Python package. The table of functions only ever grows at its end: the
 * positions below are those of every release.
 *
 * A project of your own takes onnxruntime_c_api.h from a release of ONNX Runtime instead; compile main.c with
 * -DUSE_ONNXRUNTIME_HEADER to do so here.
 */
#ifndef ONNXRUNTIME_MINIMAL_H
#define ONNXRUNTIME_MINIMAL_H

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 17 /* that of ONNX Runtime 1.17 */

typedef struct OrtAllocator OrtAllocator;
typedef struct OrtEnv OrtEnv;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtStatus OrtStatus;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtValue OrtValue;

typedef enum { ORT_LOGGING_LEVEL_FATAL = 4 } OrtLoggingLevel;
typedef enum { ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1 } ONNXTensorElementDataType;
typedef enum { OrtArenaAllocator = 1 } OrtAllocatorType;
typedef enum { OrtMemTypeDefault = 0 } OrtMemType;

typedef void (*OrtNotUsedHere)(void);

typedef struct OrtApi {
    OrtNotUsedHere from_0[2];
    /*   2 */ const char *(*GetErrorMessage)(const OrtStatus *);
    /*   3 */ OrtStatus *(*CreateEnv)(OrtLoggingLevel, const char *, OrtEnv **);
    OrtNotUsedHere from_4[3];
    /*   7 */ OrtStatus *(*CreateSession)(const OrtEnv *, const char *, const OrtSessionOptions *, OrtSession **);
    OrtNotUsedHere from_8[1];
    /*   9 */ OrtStatus *(*Run)(OrtSession *, const OrtRunOptions *, const char *const *, const OrtValue *const *, size_t,
                                const char *const *, size_t, OrtValue **);
    /*  10 */ OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **);
    OrtNotUsedHere from_11[22];
    /*  33 */ OrtStatus *(*SessionGetInputTypeInfo)(const OrtSession *, size_t, OrtTypeInfo **);
    OrtNotUsedHere from_34[2];
    /*  36 */ OrtStatus *(*SessionGetInputName)(const OrtSession *, size_t, OrtAllocator *, char **);
    /*  37 */ OrtStatus *(*SessionGetOutputName)(const OrtSession *, size_t, OrtAllocator *, char **);
    OrtNotUsedHere from_38[11];
    /*  49 */ OrtStatus *(*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *, void *, size_t, const int64_t *, size_t,
                                                           ONNXTensorElementDataType, OrtValue **);
    OrtNotUsedHere from_50[1];
    /*  51 */ OrtStatus *(*GetTensorMutableData)(OrtValue *, void **);
    OrtNotUsedHere from_52[3];
    /*  55 */ OrtStatus *(*CastTypeInfoToTensorInfo)(const OrtTypeInfo *, const OrtTensorTypeAndShapeInfo **);
    OrtNotUsedHere from_56[4];
    /*  60 */ OrtStatus *(*GetTensorElementType)(const OrtTensorTypeAndShapeInfo *, ONNXTensorElementDataType *);
    /*  61 */ OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *, size_t *);
    /*  62 */ OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *, int64_t *, size_t);
    OrtNotUsedHere from_63[1];
    /*  64 */ OrtStatus *(*GetTensorShapeElementCount)(const OrtTensorTypeAndShapeInfo *, size_t *);
    /*  65 */ OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *, OrtTensorTypeAndShapeInfo **);
    OrtNotUsedHere from_66[3];
    /*  69 */ OrtStatus *(*CreateCpuMemoryInfo)(OrtAllocatorType, OrtMemType, OrtMemoryInfo **);
    OrtNotUsedHere from_70[6];
    /*  76 */ OrtStatus *(*AllocatorFree)(OrtAllocator *, void *);
    OrtNotUsedHere from_77[1];
    /*  78 */ OrtStatus *(*GetAllocatorWithDefaultOptions)(OrtAllocator **);
    OrtNotUsedHere from_79[13];
    /*  92 */ void (*ReleaseEnv)(OrtEnv *);
    /*  93 */ void (*ReleaseStatus)(OrtStatus *);
    /*  94 */ void (*ReleaseMemoryInfo)(OrtMemoryInfo *);
    /*  95 */ void (*ReleaseSession)(OrtSession *);
    /*  96 */ void (*ReleaseValue)(OrtValue *);
    OrtNotUsedHere from_97[1];
    /*  98 */ void (*ReleaseTypeInfo)(OrtTypeInfo *);
    /*  99 */ void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo *);
    /* 100 */ void (*ReleaseSessionOptions)(OrtSessionOptions *);
    OrtNotUsedHere from_101[127];
    /* 228 */ OrtStatus *(*RegisterCustomOpsLibrary_V2)(OrtSessionOptions *, const char *);
} OrtApi;

typedef struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

const OrtApiBase *OrtGetApiBase(void);

#endif
