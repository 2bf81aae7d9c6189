/* The headers of GROMACS, and differences between its versions: the patched md.cpp defines MODEJUMP_GROMACS, which is 2022, 2025
 * or 2026.
 *
 * Compiled into GROMACS, and so under its licence, LGPL 2.1 or later.
 */
#ifndef MODEJUMP_GROMACS_H
#define MODEJUMP_GROMACS_H

#include <cstddef>

#include "gromacs/domdec/collect.h"
#include "gromacs/domdec/domdec.h"
#include "gromacs/domdec/domdec_struct.h"
#include "gromacs/gmxlib/network.h"
#include "gromacs/mdrunutility/handlerestart.h"
#include "gromacs/mdrunutility/multisim.h"
#include "gromacs/mdtypes/commrec.h"
#include "gromacs/mdtypes/enerdata.h"
#include "gromacs/mdtypes/forcebuffers.h"
#include "gromacs/mdtypes/iforceprovider.h"
#include "gromacs/mdtypes/inputrec.h"
#include "gromacs/mdtypes/md_enums.h"
#include "gromacs/mdtypes/state.h"
#include "gromacs/random/normaldistribution.h"
#include "gromacs/random/seed.h"
#include "gromacs/random/threefry.h"
#include "gromacs/topology/idef.h"
#include "gromacs/topology/ifunc.h"
#include "gromacs/topology/mtop_lookup.h"
#include "gromacs/topology/mtop_util.h"
#include "gromacs/topology/topology.h"
#include "gromacs/utility/exceptions.h"
#include "gromacs/utility/fatalerror.h"
#include "gromacs/utility/futil.h"

namespace modejump
{

#if MODEJUMP_GROMACS == 2022

inline bool isMainRank(const t_commrec& cr)
{
    return MASTER(&cr);
}
inline bool couplesPressure(const t_inputrec& ir)
{
    return ir.epc != PressureCoupling::No;
}

#else

inline bool isMainRank(const t_commrec& cr)
{
#    if MODEJUMP_GROMACS == 2025
    return MAIN(&cr);
#    else
    return cr.commMyGroup.isMainRank();
#    endif
}
inline bool couplesPressure(const t_inputrec& ir)
{
    return ir.pressureCouplingOptions.epc != PressureCoupling::No;
}

#endif

#if MODEJUMP_GROMACS < 2026

constexpr int c_potential            = F_EPOT;
constexpr int c_constraint           = F_CONSTR;
constexpr int c_constraintUncoupled  = F_CONSTRNC;
constexpr int c_settle               = F_SETTLE;
constexpr int c_distanceRestraint    = F_DISRES;
constexpr int c_orientationRestraint = F_ORIRES;
constexpr int c_positionRestraint    = F_POSRES;
constexpr int c_flatBottomRestraint  = F_FBPOSRES;

inline void broadcast(const t_commrec& cr, void* data, std::size_t bytes)
{
    if (PAR(&cr))
    {
        // in 2022 the number of bytes is an int
        gmx_bcast(static_cast<int>(bytes), data, cr.mpi_comm_mygroup);
    }
}
inline double sumOverRanks(const t_commrec& cr, double value)
{
    if (PAR(&cr))
    {
        gmx_sumd(1, &value, &cr);
    }
    return value;
}
template<typename Body>
void forEachFunction(Body body)
{
    for (int function = 0; function < F_NRE; function++)
    {
        body(function);
    }
}

#else

constexpr auto c_potential            = InteractionFunction::PotentialEnergy;
constexpr auto c_constraint           = InteractionFunction::Constraints;
constexpr auto c_constraintUncoupled  = InteractionFunction::ConstraintsNoCoupling;
constexpr auto c_settle               = InteractionFunction::SETTLE;
constexpr auto c_distanceRestraint    = InteractionFunction::DistanceRestraints;
constexpr auto c_orientationRestraint = InteractionFunction::OrientationRestraints;
constexpr auto c_positionRestraint    = InteractionFunction::PositionRestraints;
constexpr auto c_flatBottomRestraint  = InteractionFunction::FlatBottomedPositionRestraints;

inline void broadcast(const t_commrec& cr, void* data, std::size_t bytes)
{
    if (cr.commMyGroup.isParallel())
    {
        gmx_bcast(bytes, data, cr.commMyGroup.comm());
    }
}
inline double sumOverRanks(const t_commrec& cr, double value)
{
    if (cr.commMyGroup.isParallel())
    {
        cr.commMyGroup.sumReduce(1, &value);
    }
    return value;
}
template<typename Body>
void forEachFunction(Body body)
{
    for (const auto function : gmx::EnumerationWrapper<InteractionFunction>{})
    {
        body(function);
    }
}

#endif

/* The library. */

} // namespace modejump

#endif
